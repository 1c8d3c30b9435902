"""Checks of this machine: whether it has what a run needs, and what to do about each thing that is missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

NEEDED_PACKAGES = ("ray", "torch", "transformers", "deepspeed", "polars", "pyarrow")
MIN_MEMORY_GIB, MIN_DISK_GIB = 4, 1


class Check(NamedTuple):
    name: str
    ok: bool
    detail: str
    """What there is; and if that is not enough, what to do."""


def check_machine() -> Iterator[Check]:
    python = platform.python_version()
    yield Check("python", sys.version_info >= (3, 11), f"{python}; 3.11 or newer is needed")
    for package in NEEDED_PACKAGES:
        try:
            yield Check(package, True, metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Check(package, False, "not installed; run `pip install -e .` in the project's folder")
    compiler = shutil.which("c++") or shutil.which("g++")
    advice = "none found; install a C++ compiler, with which DeepSpeed builds its communication between CPUs"
    yield Check("compiler", compiler is not None, compiler or advice)
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    memory = f"{memory_gib:.0f} GiB, {os.cpu_count()} cores; {MIN_MEMORY_GIB} GiB are needed"
    yield Check("memory", memory_gib >= MIN_MEMORY_GIB, memory)
    free_gib = shutil.disk_usage(".").free / 2**30
    disk = f"{free_gib:.0f} GiB free in this folder; {MIN_DISK_GIB} GiB is needed"
    yield Check("disk", free_gib >= MIN_DISK_GIB, disk)
    yield Check("gpu", True, _gpus())


def _gpus() -> str:
    if shutil.which("nvidia-smi") is None:
        return "none found; studies run on the CPU"
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    gpus = "; ".join(answer.stdout.split("\n")).strip("; ")
    if not gpus:
        return "nvidia-smi finds none; studies run on the CPU"
    return f"{gpus}; to use them, set compute.gpus_per_worker: 1"
