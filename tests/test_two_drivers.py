"""Two drivers on one store: no Fit is handed out by both, and what one finishes the other takes over."""

from __future__ import annotations

from pathlib import Path

import pytest

from w2s_ray import store
from w2s_ray.fit import Execution, Fit
from w2s_ray.scheduling import searcher as searchers
from w2s_ray.scheduling.packs import Pack, Walk
from w2s_ray.scheduling.searcher import DagSearcher
from w2s_ray.store import Store

from fits import fit


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(searchers, "LOOK_AROUND_S", 0.0)
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
    return DagSearcher(walk, store_=opened, num_cpus=1, num_gpus=0)


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
        other.free = [1.0, 0.0]
    assert not left & held
    other.close()


def test_of_two_claims_at_once_the_smaller_name_keeps_its_fits(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searchers, "LOOK_AROUND_S", 1e9)  # neither has seen the other yet
    one, other = driver(opened), driver(opened)
    one.looked_at = other.looked_at = 1e12
    one.owner, other.owner = "a" * 32, "b" * 32
    assert isinstance(one.suggest("x"), dict)
    assert other.suggest("y") is None, "it sees the older claim and yields"
    assert isinstance(other.suggest("z"), dict), "and goes on with what is free"
    for each in (one, other):
        each.close()
