"""A small simulated cluster around the real schedule, searcher and store: see `benchmarks/fleet.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from fleet import Setting, Simulation, plan_of

FITS = 600


@pytest.mark.parametrize("wide", [False, True])
def test_slots_are_busy_and_the_driver_reads_nothing_again(wide: bool) -> None:
    plan = plan_of("embedded", num_fits=FITS, wide=wide)
    simulation = Simulation(plan, Setting(num_slots=16, charge=False))
    told = simulation.run()
    assert simulation.committed == {fit.key for fit in plan.fits}
    assert told.num_twice == told.num_spread == told.num_waited == 0
    assert told.occupied > (0.85 if wide else 0.95)
    assert told.makespan_s < 1.5 * max(told.work_bound_s, told.path_bound_s)
    calls = told.driver_calls
    assert calls["GET"] == 0, "every pack reported what became of its Fits, and there is no other driver"
    assert calls.total() < 10 * told.num_packs + told.makespan_s


def test_eight_drivers_share_the_work() -> None:
    """They start together. Nothing is trained twice, and no driver takes so much that the others wait for it."""
    plan = plan_of("embedded", num_fits=2000)
    simulation = Simulation(plan, Setting(num_slots=32, num_drivers=8, charge=False))
    told = simulation.run()
    assert simulation.committed == {fit.key for fit in plan.fits}
    assert told.num_twice == told.num_again == told.num_lost == 0
    assert told.occupied > 0.95
    assert told.makespan_s < 1.3 * max(told.work_bound_s, told.path_bound_s)
    others = 7
    once = (others + 1) * told.num_fits
    assert told.driver_calls["HEAD"] < 1.2 * once, (
        "each looks up a Fit of the others once, and a few more often, since others wait"
    )


def test_drivers_share_the_work_through_trouble() -> None:
    """Of eight drivers two die for good and two for a minute; nodes come and go, and a Fit in a thousand fails. Only what was in
    hand is trained again, and nothing is left."""
    plan = plan_of("embedded", num_fits=2000)
    simulation = Simulation(plan, Setting(num_slots=128, num_drivers=8, trouble=True, charge=False))
    told = simulation.run()
    assert told.num_twice == 0 and 0 < told.num_again <= told.num_in_hand
    failed = set(simulation.store.read_failures())
    missing = {fit.key for fit in plan.fits} - simulation.committed
    blocked = {fit.key for fit in plan.fits if failed & {ancestor.key for ancestor in fit.ancestors}}
    assert failed and missing == failed | blocked
    left = simulation.store.storage.names("leases")
    assert not [name for name in left if name.endswith(".json")], "a driver that died may leave its last beat"
