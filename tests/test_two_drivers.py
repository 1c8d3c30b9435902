"""Two drivers on one store: no Fit is handed out by both, and what one finishes the other takes over."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from w2s_ray import leases, store
from w2s_ray.fit import Execution, Fit
from w2s_ray.leases import LeaseLost
from w2s_ray.plan import load_plan
from w2s_ray.scheduling import searcher as searchers
from w2s_ray.scheduling.cluster import Node
from w2s_ray.scheduling.packs import Pack, Walk
from w2s_ray.scheduling.searcher import DagSearcher
from w2s_ray.store import Store

from fits import fit
from tiny import save_study


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(leases, "LOOK_EVERY_S", 0.0)
    return store.open_store(tmp_path / "store")


FITS = [fit(seed=seed) for seed in range(4)]


def driver(opened: Store) -> DagSearcher:
    walk = Walk(
        fits={f.key: f for f in FITS},
        executions={f.key: Execution() for f in FITS},
        seconds={f.key: 1.0 for f in FITS},
        num_slots=1,
        fits_per_pack=2,
        todo={f.key for f in FITS},
    )
    return DagSearcher(walk, store_=opened, nodes=lambda: [Node("here", 1.0, 0.0)])


def pack_of(suggestion: object) -> Pack:
    assert isinstance(suggestion, dict)
    return suggestion["pack"]


def finish(opened: Store, fits: tuple[Fit, ...], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "fit.json").write_text("{}")
    for each in fits:
        store.commit(opened, each, folder)


def test_each_fit_goes_to_one_driver(opened: Store, tmp_path: Path) -> None:
    one, other = driver(opened), driver(opened)
    first, second = pack_of(one.suggest("a")), pack_of(other.suggest("b"))
    assert not {f.key for f in first.fits} & {f.key for f in second.fits}
    assert one.suggest("c") is None, "its slot is taken"
    finish(opened, first.fits, tmp_path / "files")
    finish(opened, second.fits, tmp_path / "files")
    one.on_trial_complete("a")
    other.on_trial_complete("b")
    for each, trial in ((one, "d"), (other, "e")):
        assert each.suggest(trial) == searchers.Searcher.FINISHED, "what the other one did is done"
        assert len(each.walk.done) == 4
        each.close()
    assert not list(Path(opened.root, "leases").glob("*"))


def test_the_fits_of_a_driver_that_gives_up_are_taken_over(opened: Store) -> None:
    one, other = driver(opened), driver(opened)
    held = {f.key for f in pack_of(one.suggest("a")).fits}
    taken = {f.key for f in pack_of(other.suggest("b")).fits}
    one.close()
    other.on_trial_complete("b")
    left = held | taken
    while isinstance(suggestion := other.suggest("c"), dict):
        left -= {f.key for f in pack_of(suggestion).fits}
        other.packs.clear()
    assert not left & held
    other.close()


def test_of_two_claims_at_once_at_most_one_stands(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = driver(opened), driver(opened)
    one.look_around_s = other.look_around_s = 1e12  # neither has seen the other yet
    write = leases.write

    def write_and_be_overtaken(*arguments: Any, **named: Any) -> None:
        write(*arguments, **named)
        monkeypatch.setattr(leases, "write", write)
        assert other.suggest("y") is None, "it sees a claim, and withdraws"

    monkeypatch.setattr(leases, "write", write_and_be_overtaken)
    assert isinstance(one.suggest("x"), dict)
    assert isinstance(other.suggest("z"), dict), "the other one goes on with what is free"
    for each in (one, other):
        each.close()


def on_another_host(opened: Store, searcher: DagSearcher) -> None:
    """What `searcher` holds, as a driver of another host would have written it, which then fell silent."""
    for name, lease in leases.read(opened).items():
        if lease["owner"] == searcher.owner:
            store.write_bytes(
                opened, opened.path("leases", f"{name}.json"), json.dumps(lease | {"host": "far"}).encode()
            )


def test_a_silent_driver_is_taken_over_and_stops_when_it_wakes(opened: Store) -> None:
    one, other = driver(opened), driver(opened)
    held = pack_of(suggestion := one.suggest("a"))
    assert isinstance(suggestion, dict) and leases.holds(opened, suggestion["lease"])
    on_another_host(opened, one)
    pack_of(other.suggest("b"))
    other.packs.clear()  # its own part is done
    for look in range(leases.DEAD_AFTER_LOOKS + 1):
        taken = other.suggest(f"c{look}")
        if look < leases.DEAD_AFTER_LOOKS - 1:
            assert taken is None, "it may only be slow"
        if taken is not None:
            break
    assert {f.key for f in pack_of(taken).fits} == {f.key for f in held.fits}
    assert not leases.holds(opened, suggestion["lease"])
    one._renew(held)
    assert isinstance(one.trouble, LeaseLost) and "another driver has taken over" in str(one.trouble)
    assert not leases.holds(opened, suggestion["lease"]), "it does not take the lease back"
    assert one.suggest("d") is None, "and starts nothing more"
    for each in (one, other):
        each.close()


def test_a_driver_that_beats_is_not_taken_over(opened: Store) -> None:
    one, other = driver(opened), driver(opened)
    held = pack_of(one.suggest("a"))
    pack_of(other.suggest("b"))
    other.packs.clear()
    for look in range(2 * leases.DEAD_AFTER_LOOKS):
        one._renew(held)
        on_another_host(opened, one)
        assert other.suggest(f"c{look}") is None
    for each in (one, other):
        each.close()


def test_a_worker_whose_lease_is_gone_commits_nothing(tmp_path: Path) -> None:
    """Its driver slept, another one took over; the worker finds out when its Fit is ready."""
    from w2s_ray.training.pack import run_pack

    opened = store.open_store(tmp_path / "store")
    fits = list(load_plan(save_study(tmp_path, grid={"pairs": [["small", "small"]]})).fits)
    leases.write(opened, "mine", owner="me", keys=[f.key for f in fits])

    def lose(event: dict[str, Any]) -> None:
        leases.drop(opened, "mine")

    with pytest.raises(LeaseLost):
        run_pack(fits, store_uri=opened.uri, execution=Execution(), report=lose, lease="mine")
    assert not store.committed(opened, fits) and not store.read_failures(opened)
    leases.write(opened, "mine", owner="me", keys=[f.key for f in fits])
    run_pack(fits, store_uri=opened.uri, execution=Execution(), report=lambda event: None, lease="mine")
    assert len(store.committed(opened, fits)) == 3


def test_only_those_who_watch_go_by_the_clock(opened: Store) -> None:
    leases.write(opened, "mine", owner="me", keys=["k1", "k2"])
    assert set(leases.shown(opened)) == {"k1", "k2"}
    lease = leases.read(opened)["mine"]
    path = opened.path("leases", "mine.json")
    store.write_bytes(opened, path, json.dumps(lease | {"beat": time.time() - 2 * leases.STALE_S}).encode())
    assert leases.shown(opened) == {}, "no heartbeat, no sign of life"
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    store.write_bytes(opened, path, json.dumps(lease | {"pid": int(gone.stdout)}).encode())
    assert leases.shown(opened) == {}, "its process is gone from this host"
    assert leases.Neighbours(opened, "other").look() == {}
    store.write_bytes(opened, path, json.dumps(lease | {"host": "far", "pid": int(gone.stdout)}).encode())
    assert set(leases.shown(opened)) == {"k1", "k2"}, "of another host only the heartbeat tells"
    store.write_bytes(opened, path, b"{")
    assert leases.read(opened) == {}, "cut short"
    leases.drop(opened, "mine")
    assert leases.read(opened) == {}
