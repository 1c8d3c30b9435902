"""What a study survives: `python benchmarks/chaos.py [--disturbances 50] [--store folder|bucket] [--seed 0]`.

Runs a study of tiny models once in peace, then disturbed: a worker, the Tune trial around it, a raylet, the driver or
everything is killed, a process paused, a committed file cut short (which `w2s verify --repair` then sets aside); in a folder
the disk is filled (as root, who can mount a small one); in a bucket, on moto's S3 server, the network to it is cut. Each time
the same command goes on. At the end predictions and curves are compared byte for byte, and how often a Fit was begun is counted.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from chaos import COMPUTE, GRID, Run, disturb
from proxy import Proxy, bucket
from tiny import save_study


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of 256 MiB, where that can be had."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256m", "w2s", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        print("no small disk can be mounted here: the disk is not filled")
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disturbances", type=int, default=50)
    parser.add_argument("--store", choices=("folder", "bucket"), default="folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=20, help="of the study: 10 Fits each")
    parser.add_argument("--folder", type=Path, help="keep everything here")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(exist_ok=True)
        study = save_study(folder, grid=GRID | {"seeds": options.seeds}, compute=COMPUTE)
        peace = Run(study, str(folder / "peace"), folder / "peace-out")
        peace.start()
        assert peace.process is not None and peace.process.wait() == 0, "the undisturbed run failed"
        print(f"in peace: {len(peace.done())} Fits, {peace.num_attempts()} begun", flush=True)
        disk, proxy, uri = None, None, ""
        if options.store == "folder":
            disk = stack.enter_context(small_disk(folder / "disk"))
            uri = str((disk or folder) / "chaos")
        else:
            logging.getLogger("werkzeug").setLevel(logging.ERROR)
            proxy = stack.enter_context(Proxy.to(stack.enter_context(bucket())))
            uri = proxy.uri
        told = disturb(
            Run(study, uri, folder / "chaos-out"),
            peace=peace.store,
            num_disturbances=options.disturbances,
            draw=random.Random(options.seed),
            disk=disk,
            proxy=proxy,
        )
        print(f"in a {options.store}: {told}", flush=True)
    sys.exit(bool(told.failed or told.differ))


if __name__ == "__main__":
    main()
