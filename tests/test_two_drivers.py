"""Two drivers on one store: no Fit is handed out by both, and what one finishes the other takes over."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from w2s_ray import leases
from w2s_ray.fit import Execution, Fit
from w2s_ray.leases import LeaseLost, Leases
from w2s_ray.planning import load_plan
from w2s_ray.scheduling import searcher as searchers
from w2s_ray.scheduling.packs import Pack, Schedule
from w2s_ray.scheduling.room import Node
from w2s_ray.scheduling.searcher import DagSearcher
from w2s_ray.store import Store, open_store

from desk import Desk
from fits import fit
from tiny import save_study


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(leases, "LOOK_EVERY_S", 0.0)
    return open_store(tmp_path / "store")


FITS = [fit(seed=seed) for seed in range(4)]


def driver(store: Store) -> DagSearcher:
    schedule = Schedule(
        fits={f.key: f for f in FITS},
        executions={f.key: Execution() for f in FITS},
        seconds={f.key: 1.0 for f in FITS},
        num_slots=1,
        fits_per_pack=2,
        todo={f.key for f in FITS},
    )
    return DagSearcher(schedule, store=store, nodes=lambda: [Node("here", 1.0, 0.0)], desk=Desk())


def start(searcher: DagSearcher, trial: str) -> Pack:
    """What a new group of workers gets."""
    suggestion = searcher.suggest(trial)
    assert isinstance(suggestion, dict) and suggestion["group"] == trial
    return searcher.packs[trial][0]


def empty(searcher: DagSearcher) -> None:
    """Forget what it works on, leases and all, as if its part were done."""
    for pack, _ in searcher.packs.values():
        searcher.room.give_back(pack.name)
    searcher.packs.clear()


def finish(store: Store, fits: tuple[Fit, ...], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "fit.json").write_text("{}")
    for each in fits:
        store.commit(each, folder)


def test_each_fit_goes_to_one_driver(store: Store, tmp_path: Path) -> None:
    one, other = driver(store), driver(store)
    first, second = start(one, "a"), start(other, "b")
    assert not {f.key for f in first.fits} & {f.key for f in second.fits}
    assert one.suggest("c") is None, "its slot is taken"
    finish(store, first.fits, tmp_path / "files")
    finish(store, second.fits, tmp_path / "files")
    one.on_trial_complete("a")
    other.on_trial_complete("b")
    for each, trial in ((one, "d"), (other, "e")):
        assert each.suggest(trial) == searchers.Searcher.FINISHED, "what the other one did is done"
        assert len(each.schedule.done) == 4
        each.close()
    assert not list(Path(store.storage.root, "leases").glob("*"))


def test_the_fits_of_a_driver_that_gives_up_are_taken_over(store: Store) -> None:
    one, other = driver(store), driver(store)
    held = {f.key for f in start(one, "a").fits}
    taken = {f.key for f in start(other, "b").fits}
    one.close()
    other.on_trial_complete("b")
    left = held | taken
    while isinstance(other.suggest("c"), dict):
        left -= {f.key for f in other.packs["c"][0].fits}
        empty(other)
    assert not left & held
    other.close()


def test_of_two_claims_at_once_at_most_one_stands(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = driver(store), driver(store)
    one.look_at_leases_s = other.look_at_leases_s = 1e12  # neither has seen the other yet
    write = Leases.write

    def write_and_be_overtaken(*arguments: Any, **named: Any) -> None:
        write(*arguments, **named)
        monkeypatch.setattr(Leases, "write", write)
        assert other.suggest("y") is None, "it sees a claim, and withdraws"

    monkeypatch.setattr(Leases, "write", write_and_be_overtaken)
    assert isinstance(one.suggest("x"), dict)
    assert isinstance(other.suggest("z"), dict), "the other one goes on with what is free"
    for each in (one, other):
        each.close()


def on_another_host(store: Store, searcher: DagSearcher) -> None:
    """What `searcher` holds, as a driver of another host would have written it, which then fell silent."""
    for name, lease in Leases(store.storage).read().items():
        if lease["owner"] == searcher.owner:
            store.storage.write(f"leases/{name}.json", json.dumps(lease | {"host": "far"}).encode())


def test_a_silent_driver_is_taken_over_and_stops_when_it_wakes(store: Store) -> None:
    one, other = driver(store), driver(store)
    held = start(one, "a")
    (lease,) = one.neighbours.mine
    assert Leases(store.storage).holds(lease)
    on_another_host(store, one)
    start(other, "b")
    empty(other)  # its own part is done
    for look in range(leases.DEAD_AFTER_LOOKS + 1):
        if other.suggest(f"c{look}") is not None:
            assert look >= leases.DEAD_AFTER_LOOKS - 1, "it may only be slow"
            break
    ((taken, _began_s),) = other.packs.values()
    assert {f.key for f in taken.fits} == {f.key for f in held.fits}
    assert not Leases(store.storage).holds(lease)
    one.renew_now()
    assert isinstance(one.trouble, LeaseLost) and "another driver has taken over" in str(one.trouble)
    assert not Leases(store.storage).holds(lease), "it does not take the lease back"
    assert one.suggest("d") is None, "and starts nothing more"
    for each in (one, other):
        each.close()


def test_a_driver_that_beats_is_not_taken_over(store: Store) -> None:
    one, other = driver(store), driver(store)
    start(one, "a")
    start(other, "b")
    empty(other)
    for look in range(2 * leases.DEAD_AFTER_LOOKS):
        one.renew_now()
        on_another_host(store, one)
        assert other.suggest(f"c{look}") is None
    for each in (one, other):
        each.close()


def test_a_worker_whose_lease_is_gone_commits_nothing(tmp_path: Path) -> None:
    """Its driver slept, another one took over; the worker finds out when its Fit is ready."""
    from w2s_ray.training.pack import run_pack

    store = open_store(tmp_path / "store")
    fits = list(load_plan(save_study(tmp_path, grid={"pairs": [["small", "small"]]})).fits)
    Leases(store.storage).write("mine", owner="me", keys=[f.key for f in fits])

    def lose(event: dict[str, Any]) -> None:
        Leases(store.storage).drop("mine")

    with pytest.raises(LeaseLost):
        run_pack(fits, store_uri=store.uri, execution=Execution(), report=lose, lease="mine")
    assert not store.committed(fits) and not store.read_failures()
    Leases(store.storage).write("mine", owner="me", keys=[f.key for f in fits])
    run_pack(fits, store_uri=store.uri, execution=Execution(), report=lambda event: None, lease="mine")
    assert len(store.committed(fits)) == 3


def test_only_those_who_watch_go_by_the_clock(store: Store) -> None:
    Leases(store.storage).write("mine", owner="me", keys=["k1", "k2"])
    assert set(Leases(store.storage).read_alive()) == {"k1", "k2"}
    lease = Leases(store.storage).read()["mine"]
    path = "leases/mine.json"
    store.storage.write(path, json.dumps(lease | {"beat": time.time() - 2 * leases.STALE_S}).encode())
    assert Leases(store.storage).read_alive() == {}, "no heartbeat, no sign of life"
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    store.storage.write(path, json.dumps(lease | {"pid": int(gone.stdout)}).encode())
    assert Leases(store.storage).read_alive() == {}, "its process is gone from this host"
    assert leases.Neighbours(Leases(store.storage), "other").look() == {}
    store.storage.write(path, json.dumps(lease | {"host": "far", "pid": int(gone.stdout)}).encode())
    assert set(Leases(store.storage).read_alive()) == {"k1", "k2"}, "of another host only the heartbeat tells"
    store.storage.write(path, b"{")
    assert Leases(store.storage).read() == {}, "cut short"
    Leases(store.storage).drop("mine")
    assert Leases(store.storage).read() == {}
