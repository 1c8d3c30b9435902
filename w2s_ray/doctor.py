"""Whether this machine can run a study: one line for each thing that a run needs, with what to do where it is missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

NEEDED = ("ray", "torch", "transformers", "deepspeed", "polars", "pyarrow")


def check_machine() -> Iterator[tuple[str, bool, str]]:
    """(name, all well, detail) for each thing checked."""
    version = platform.python_version()
    yield "python", sys.version_info >= (3, 11), f"{version}; 3.11 or newer is needed"
    for package in NEEDED:
        try:
            yield package, True, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, False, "not installed; run `pip install -e .` in the project's folder"
    compiler = shutil.which("c++") or shutil.which("g++")
    yield "compiler", compiler is not None, compiler or "none; DeepSpeed builds its CPU communication with one"
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield "memory", memory_gib >= 4, f"{memory_gib:.0f} GiB, {os.cpu_count()} cores; 4 GiB are needed"
    free_gib = shutil.disk_usage(".").free / 2**30
    yield "disk", free_gib >= 1, f"{free_gib:.0f} GiB free here; 1 GiB is needed"
    yield "gpu", True, _gpus()


def _gpus() -> str:
    if shutil.which("nvidia-smi") is None:
        return "none found; studies run on the CPU"
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    found = "; ".join(answer.stdout.split("\n")).strip("; ")
    return f"{found}; set compute.gpus_per_worker: 1 to use them" if found else "nvidia-smi finds none"
