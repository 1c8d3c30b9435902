"""Checks of this machine: whether it has what a run needs, and what to do about each thing that is missing.

Promises: nothing is written, and nothing is asked of the network unless that is wanted (`--hub`, a bucket, a cluster). torch is
asked in a process of its own, so that a broken driver can't take this one with it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from w2s_ray.memory import container_memory_gib

NEEDED_PACKAGES = ("ray", "torch", "transformers", "deepspeed", "polars", "pyarrow")
MIN_MEMORY_GIB, MIN_FREE_MEMORY_GIB, MIN_DISK_GIB, MIN_SHARED_GIB = 4, 2, 1, 1
FULL_SHARE = 0.95
"""Ray puts nothing on a disk that is fuller than this."""
TIMEOUT_S = 120

ASK_TORCH = """
import json, torch
facts = {"version": torch.__version__, "cuda": torch.version.cuda or torch.version.hip, "gpus": [], "error": ""}
if facts["cuda"]:
    try:
        for i in range(torch.cuda.device_count()):
            torch.ones(2, device=f"cuda:{i}").sum().item()
            facts["gpus"].append(torch.cuda.get_device_name(i))
    except Exception as error:
        facts["error"] = str(error).strip().splitlines()[0]
print(json.dumps(facts))
"""


class Check(NamedTuple):
    name: str
    state: Literal["ok", "note", "bad"]
    """`bad`: a run would fail. `note`: it would run, but not as well as it could."""
    found: str
    advice: str = ""
    """What to do. Empty where the state is `ok`."""


def check_machine(*, store_uri: str, address: str | None = None, hub: bool = False) -> Iterator[Check]:
    yield _python()
    yield from map(_package, NEEDED_PACKAGES)
    yield _gpu()
    yield _memory()
    yield _shared_memory()
    yield _disk("temp", Path(tempfile.gettempdir()))
    yield from _store(store_uri)
    if address:
        yield _cluster(address, store_uri)
    yield from _embedded_weights()
    if hub:
        yield from _hub()


# --- packages -----------------------------------------------------------------------------------------------------


def _python() -> Check:
    is_new = sys.version_info >= (3, 11)
    advice = "" if is_new else "install Python 3.11 or newer"
    return Check("python", "ok" if is_new else "bad", platform.python_version(), advice)


def _package(name: str) -> Check:
    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, "bad", "not installed", "pip install w2s_ray")


# --- the machine --------------------------------------------------------------------------------------------------


def _gpu() -> Check:
    """GPUs as the driver and as torch see them. A study on the CPU runs without; one that is there must work."""
    name = "gpu"
    torch, problem = _ask_torch()
    if problem:
        return Check(name, "bad", f"torch can't be imported: {problem}", "install torch again")
    build = f"torch {torch['version']}"
    there, failure = gpus_of_the_driver()
    if failure:
        return Check(
            name,
            "bad",
            f"NVIDIA's driver fails: {failure}",
            "restart the machine, or the container with its GPUs (docker run --gpus all), until nvidia-smi lists them",
        )
    if not there and not torch["gpus"]:
        return Check(name, "ok", "none; studies run on the CPU")
    if os.environ.get("CUDA_VISIBLE_DEVICES", "unset") in ("", "-1"):
        return Check(name, "ok", f"hidden by CUDA_VISIBLE_DEVICES: {'; '.join(there)}; studies run on the CPU")
    if not torch["cuda"]:
        return Check(
            name,
            "bad",
            f"{'; '.join(there)}; but {build} is a build for the CPU",
            "install a build for CUDA: pip install --force-reinstall torch --index-url "
            "https://download.pytorch.org/whl/cu128 (a CUDA version that the driver supports)",
        )
    if torch["error"] or not torch["gpus"]:
        reason = torch["error"] or "it sees no GPU"
        return Check(
            name,
            "bad",
            f"{'; '.join(there)}; but {build} for CUDA {torch['cuda']} can't use them: {reason}",
            "install a driver that supports this CUDA, or a torch for the driver's CUDA (nvidia-smi names it)",
        )
    used = "; to use them, set compute.gpus_per_worker: 1"
    return Check(name, "ok", f"{'; '.join(torch['gpus'])} ({build}, CUDA {torch['cuda']}){used}")


def _ask_torch() -> tuple[dict[str, Any], str]:
    """What torch says of itself and the GPUs that it can use, or why it can't be imported."""
    try:
        answer = subprocess.run(
            [sys.executable, "-c", ASK_TORCH], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {}, f"no answer within {TIMEOUT_S} s"
    if answer.returncode:
        return {}, (answer.stderr.strip().splitlines() or [f"it ends with {answer.returncode}"])[-1]
    facts: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return facts, ""


def gpus_of_the_driver() -> tuple[list[str], str]:
    """The GPUs that NVIDIA's driver lists, and why it can't if it can't."""
    devices = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    if shutil.which("nvidia-smi") is None:
        return devices, ""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return devices, f"nvidia-smi gives no answer within {TIMEOUT_S} s"
    said = answer.stdout.strip() or answer.stderr.strip()
    if "No devices were found" in said:
        return [], ""
    if answer.returncode:
        return devices, said.splitlines()[0] if said else f"nvidia-smi ends with {answer.returncode}"
    return said.splitlines(), ""


def _memory() -> Check:
    """Of the container if it has a limit, else of the machine."""
    total_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    limit_gib, used_gib = container_memory_gib()
    free_gib = _available_gib()
    found = f"{total_gib:.0f} GiB"
    if limit_gib is not None and limit_gib < total_gib:
        found = f"{limit_gib:.1f} GiB is this container's limit (the machine has {total_gib:.0f})"
        total_gib, free_gib = limit_gib, min(free_gib, limit_gib - used_gib)
    found = f"{found}, {max(free_gib, 0):.1f} GiB free; {os.cpu_count()} cores"
    if total_gib < MIN_MEMORY_GIB:
        return Check("memory", "bad", found, f"give it {MIN_MEMORY_GIB} GiB or more (docker run --memory)")
    if free_gib < MIN_FREE_MEMORY_GIB:
        return Check("memory", "note", found, "end other programs: Ray ends workers when 95 % is used")
    return Check("memory", "ok", found)


def _available_gib() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable")), float("inf"))


def _shared_memory() -> Check:
    """What workers exchange tensors through (NCCL, gloo), and where Ray keeps objects."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Check("/dev/shm", "bad", "not there", "mount it: Ray and several workers of a Fit exchange data there")
    free_gib = shutil.disk_usage(folder).free / 2**30
    found = f"{free_gib:.1f} GiB free"
    if not os.access(folder, os.W_OK):
        return Check("/dev/shm", "bad", "not writable", "mount it with permission to write")
    if free_gib < MIN_SHARED_GIB:
        advice = "give the container more (docker run --shm-size 4g): Ray gets slow, and NCCL may fail between GPUs"
        return Check("/dev/shm", "note", found, advice)
    return Check("/dev/shm", "ok", found)


def _disk(name: str, folder: Path) -> Check:
    """The disk of a folder, which need not exist yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(there)
    free_gib, share = usage.free / 2**30, 1 - usage.free / max(usage.total, 1)
    found = f"{folder}: {free_gib:.1f} GiB free"
    if not os.access(there, os.W_OK):
        return Check(name, "bad", f"{folder}: {there} is not writable", "give another folder, or permission to write")
    if free_gib < MIN_DISK_GIB:
        return Check(name, "bad", found, f"make room: {MIN_DISK_GIB} GiB or more is needed")
    if name == "temp" and share > FULL_SHARE:
        advice = "make room, or set RAY_TMPDIR and TMPDIR to another disk: Ray puts nothing on one that is 95 % full"
        return Check(name, "bad", f"{found}, {share:.0%} used", advice)
    return Check(name, "ok", found)


# --- the store, the cluster ---------------------------------------------------------------------------------------


def _store(uri: str) -> Iterator[Check]:
    from w2s_ray.errors import InputError
    from w2s_ray.storage import open_storage

    try:
        storage = open_storage(uri)
    except InputError as error:
        yield Check("store", "bad", str(error), "give another --store")
        return
    if storage.is_local:
        yield _disk("store", Path(storage.root))
        return
    try:
        info = storage.fs.get_file_info(storage.root)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        advice = (
            "check its name, the network and the credentials (AWS_ACCESS_KEY_ID ..., GOOGLE_APPLICATION_CREDENTIALS)"
        )
        yield Check("store", "bad", f"{uri}: no access ({reason})", advice)
        return
    yield Check("store", "ok", f"{uri}: {'can be read' if info.type.name != 'NotFound' else 'nothing there yet'}")


def _cluster(address: str, store_uri: str) -> Check:
    """Whether a Ray cluster answers, and all of its nodes see the store."""
    from w2s_ray.errors import InputError
    from w2s_ray.scheduling import cluster
    from w2s_ray.store import open_store

    try:
        with cluster.connected(address):
            nodes = cluster.alive_nodes()
            cluster.check_shared(open_store(store_uri))
    except InputError as error:
        return Check("cluster", "bad", str(error), "mend this before a run with --address")
    cpus, gpus = sum(node.num_cpus for node in nodes), sum(node.num_gpus for node in nodes)
    return Check("cluster", "ok", f"{len(nodes)} node(s), {cpus:g} CPUs, {gpus:g} GPUs; all see the store")


# --- models -------------------------------------------------------------------------------------------------------


def _embedded_weights() -> Iterator[Check]:
    """The families whose weights come with this package or another one."""
    from w2s_ray.errors import InputError
    from w2s_ray.families import family_names, load_family, local_folder

    for name in family_names():
        family = load_family(name)
        if not family.sizes[0].source.startswith(("./", "package:")):
            continue
        try:
            folders = [folder for size in family.sizes if (folder := local_folder(family, size.size))]
        except InputError as error:
            yield Check(name, "note", "its weights are not installed", str(error))
            continue
        missing = [folder for folder in dict.fromkeys(folders) if not (folder / "model.safetensors").is_file()]
        if missing:
            yield Check(name, "bad", f"no model.safetensors in {missing[0]}", "install the package again")
        else:
            yield Check(name, "ok", f"{len(family.sizes)} sizes, with this installation")


def _hub() -> Iterator[Check]:
    """Whether the hub answers, and knows who asks."""
    import httpx2
    from huggingface_hub import HfApi, constants, get_token

    from w2s_ray.hub import FOLDER, TIMEOUT_S

    if constants.HF_HUB_OFFLINE:
        yield Check("hub", "note", "HF_HUB_OFFLINE is set", f"unset it, or have all files in the cache or ${FOLDER}")
        return
    try:
        httpx2.get(f"{constants.ENDPOINT}/api/models?limit=1", timeout=TIMEOUT_S).raise_for_status()
    except (httpx2.HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        advice = f"check the network and the proxy (HTTPS_PROXY), or put copies below ${FOLDER}"
        yield Check("hub", "bad", f"{constants.ENDPOINT} can't be reached ({reason})", advice)
        return
    yield Check("hub", "ok", f"{constants.ENDPOINT} answers")
    if get_token() is None:
        yield Check("hub token", "note", "none", "for gated models, log in with `hf auth login` or set HF_TOKEN")
        return
    try:
        yield Check("hub token", "ok", f"of {HfApi().whoami()['name']}")
    except (httpx2.HTTPError, OSError) as error:
        advice = "make a new one at https://huggingface.co/settings/tokens, and log in with `hf auth login`"
        yield Check("hub token", "bad", f"refused ({type(error).__name__})", advice)
