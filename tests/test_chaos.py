"""What a study survives, and where: a bucket whose server goes away, two drivers, and a little of everything."""

from __future__ import annotations

import random
import secrets
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from w2s_ray import cli
from w2s_ray.planning import load_plan
from w2s_ray.store import Store, open_store

from chaos import COMPUTE, GRID, Run, differences, disturb
from driver import own_environment
from proxy import Proxy
from tiny import save_study

SMALL = {"pairs": [["small", "small"]]}


def test_a_study_in_a_bucket_whose_server_goes_away(tmp_path: Path, s3_uri: str, ray_here: None) -> None:
    study = save_study(tmp_path, grid=SMALL | {"methods": ["naive", "confidence"]}, compute={"fits_per_pack": 2})
    with Proxy.to(s3_uri) as proxy:
        uri = proxy.uri.replace("/store?", f"/{secrets.token_hex(8)}?")
        store = open_store(uri)
        cut = threading.Thread(target=cut_off_once_it_works, args=(proxy, open_store(s3_like(uri, s3_uri))))
        cut.start()
        result = CliRunner().invoke(
            cli.app, ["run", str(study), "--store", uri, "--out", str(tmp_path / "out")], catch_exceptions=False
        )
        cut.join()
        assert result.exit_code == 0 and "4 Fits in" in result.output, result.output
        assert not store.storage.names("leases") and not store.storage.names("ray") and not store.read_failures()
        assert all(store.damage(fit.folder) == [] for fit in load_plan(study).fits)
    assert (tmp_path / "out" / "report.html").exists()


def s3_like(uri: str, direct: str) -> str:
    """The same bucket and folder, past the proxy."""
    return uri.partition("?")[0] + "?" + direct.partition("?")[2]


def cut_off_once_it_works(proxy: Proxy, past_it: Store) -> None:
    deadline_s = time.monotonic() + 120
    while not past_it.committed_folders() and time.monotonic() < deadline_s:
        time.sleep(0.1)
    proxy.drop()
    time.sleep(8)
    proxy.restore()


@pytest.mark.slow
def test_two_drivers_share_the_work(tmp_path: Path) -> None:
    """Each with a Ray of its own on one store; how often a Fit was begun shows in its tracker's folder."""
    study = save_study(tmp_path, grid=SMALL | {"seeds": 2}, compute={"fits_per_pack": 1})
    both(study, tmp_path, [], [])


@pytest.mark.slow
def test_two_drivers_on_two_hosts_share_the_work(tmp_path: Path) -> None:
    """The same where neither can see the other's process."""
    other = ["unshare", "--uts", "sh", "-c", 'hostname far-away; exec "$@"', "sh"]
    if subprocess.run([*other, "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root can be another host")
    study = save_study(tmp_path, grid=SMALL | {"seeds": 2}, compute={"fits_per_pack": 1})
    both(study, tmp_path, [], other)


def both(study: Path, folder: Path, *prefixes: list[str]) -> None:
    command = [sys.executable, "-m", "w2s_ray.cli", "run", str(study), "--store", str(folder / "store")]
    command += ["--track", "tensorboard", "--max-parallel", "1"]
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    drivers = [
        subprocess.Popen([*prefix, *command, "--out", str(folder / f"out-{number}")], env=own_environment(), **piped)
        for number, prefix in enumerate(prefixes)
    ]
    said = [driver.communicate(timeout=300)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    shares = [{path.parent.name for path in folder.glob(f"out-{n}/tensorboard/*/*/events*")} for n in (0, 1)]
    assert not shares[0] & shares[1], "no Fit is begun by both"
    assert len(shares[0] | shares[1]) == len(load_plan(study).fits) == 6
    assert all(shares), "each did a part"


@pytest.mark.slow
def test_a_little_of_everything(tmp_path: Path) -> None:
    study = save_study(tmp_path, grid=GRID, compute=COMPUTE)
    peace = Run(study, str(tmp_path / "peace"), tmp_path / "peace-out")
    peace.start()
    assert peace.process is not None and peace.process.wait() == 0
    run = Run(study, str(tmp_path / "chaos"), tmp_path / "chaos-out")
    ways = ("worker killed", "file cut short", "process paused", "everything killed", "trial killed")
    told = disturb(run, peace=peace.store, num_disturbances=5, draw=random.Random(0), only=ways)
    assert not told.failed and not told.differ, told
    assert told.num_attempts - told.num_fits <= 2 * told.ways.total()
    assert differences(load_plan(study).fits, run.store, peace.store) == []
