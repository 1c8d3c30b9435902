"""A Fit in one process: any architecture, exact resumption, the same numbers however it is executed."""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch

from w2s_ray import families
from w2s_ray.fit import Execution, Fit
from w2s_ray.plan import load_plan
from w2s_ray.store import Store, open_store
from w2s_ray.training import engine as engines
from w2s_ray.training import loop
from w2s_ray.training import model as models
from w2s_ray.training.data import pad
from w2s_ray.training.pack import run_pack

from tiny import CONFIGS, WORDS, save_model, save_study, save_task


def quiet(event: dict[str, Any]) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    save_study(folder)
    return folder


def fits_of(folder: Path, **grid: Any) -> list[Fit]:
    return list(load_plan(save_study(folder, grid=grid)).fits)


def files_of(store: Store, fit: Fit) -> dict[str, bytes]:
    names = store.read_done(fit.folder)["files"]
    return {name: store.read_file(fit.folder, name) for name in names if name != "fit.json"}


def probabilities(store: Store, fit: Fit) -> np.ndarray:
    return store.read_table(fit, "test.parquet").column("probability").to_numpy()


@pytest.mark.parametrize("kind", CONFIGS)
def test_any_architecture_trains(kind: str, tmp_path: Path) -> None:
    save_model(tmp_path / "m", kind, pad=kind != "gpt2")
    save_task(tmp_path)
    study = save_study(
        tmp_path,
        grid={
            "models": [{"name": "m", "path": "m"}],
            "training": {"epochs": 8, "batch_size": 16, "learning_rate": 0.01},
        },
    )
    supervisor = load_plan(study).fits[0]
    assert supervisor.model.pooling == ("mean" if kind == "bert" else "last")
    store = open_store(tmp_path / "store")
    run_pack([supervisor], store_uri=store.uri, execution=Execution(), report=quiet)
    assert store.read_failures() == {}
    found = probabilities(store, supervisor)
    assert len(found) == 64 and found.std() > 0.01, "it predicts, and not the same for all"
    curve = store.read_table(supervisor, "curve.parquet").to_pydict()
    assert curve["train_loss"][-1] < math.log(2), "it has learned something about its own labels"


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_read_out_does_not_depend_on_padding(kind: str, tmp_path: Path) -> None:
    """Neither on its side nor on its length; and a real token with the pad's id still counts."""
    save_model(tmp_path, kind, pad=False)
    family = families.from_models([_entry(tmp_path)], base=tmp_path)
    classifier, start = models.build(
        families.model(family, "m"), setting="classification", tune="all", execution=Execution(), bf16=False, seed=0
    )
    assert (start == "zero") == (kind == "bert"), "an encoder has no output embeddings"
    torch.nn.init.normal_(classifier.head.weight)
    tokens = [[5, 6, 7, 0], [8, 9]]  # token 0 is a word here ("!"), and the padding too
    ids, mask = pad(tokens, pad_id=0, device=torch.device("cpu"))
    wider = torch.nn.functional.pad(ids, (0, 3)), torch.nn.functional.pad(mask, (0, 3))
    left = (
        torch.tensor([[0, 0, 5, 6, 7, 0], [0, 0, 0, 0, 8, 9]]),
        torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]]),
    )
    alone = torch.cat([classifier(*pad([each], pad_id=0, device=torch.device("cpu"))) for each in tokens])
    shorter = classifier(*pad([[5, 6, 7]], pad_id=0, device=torch.device("cpu")))
    for inputs in ((ids, mask), wider, left):
        torch.testing.assert_close(classifier(*inputs), alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(shorter[0], alone[0], atol=1e-4), "the last '!' is read"


def _entry(folder: Path) -> Any:
    from w2s_ray.study import ModelEntry

    return ModelEntry(name="m", path=str(folder))


def test_dropout_is_off_and_bf16_keeps_the_head_in_fp32(tmp_path: Path) -> None:
    save_model(tmp_path, "gpt2")
    family = families.from_models([_entry(tmp_path)], base=tmp_path)
    classifier, _ = models.build(
        families.model(family, "m"), setting="classification", tune="all", execution=Execution(), bf16=True, seed=0
    )
    classifier.train()
    ids, mask = pad([[5, 6, 7], [8, 9, 10]], pad_id=0, device=torch.device("cpu"))
    assert torch.equal(classifier(ids, mask), classifier(ids, mask))
    assert classifier(ids, mask).dtype == torch.float32
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}


class Killed(BaseException):
    """As when the process goes away: nothing catches it."""


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_an_interrupted_fit_ends_in_the_same_bytes(
    zero_stage: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "REPORT_EVERY_S", 0.0)  # a report, and so a checkpoint, at every step
    fit = next(f for f in fits_of(folder) if f.half == "A")
    execution = Execution(zero_stage=zero_stage, checkpoint_every_s=0.0)
    whole, broken = open_store(tmp_path / "whole"), open_store(tmp_path / "broken")
    run_pack([fit], store_uri=whole.uri, execution=replace(execution, checkpoint_every_s=1e9), report=quiet)

    def kill_at(step: int) -> Any:
        def report(event: dict[str, Any]) -> None:
            if event.get("step") == step:
                raise Killed

        return report

    for step in (4, 5):
        with pytest.raises(Killed):
            run_pack([fit], store_uri=broken.uri, execution=execution, report=kill_at(step))
    assert not broken.is_committed(fit)
    weights = Path(broken.storage.root, "partial", fit.folder, "step-000000004", "model.safetensors")
    assert weights.exists(), "the checkpoint of the first run carried the second one on"
    run_pack([fit], store_uri=broken.uri, execution=execution, report=quiet)
    assert files_of(whole, fit) == files_of(broken, fit)
    assert '"resumed_from_step": 4' in broken.read_file(fit.folder, "fit.json").decode()
    assert not Path(broken.storage.root, "partial", fit.folder).exists()


def test_a_truncated_checkpoint_is_passed_over(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REPORT_EVERY_S", 0.0)
    fit = fits_of(folder)[0]
    store, whole = open_store(tmp_path / "store"), open_store(tmp_path / "whole")

    def report(event: dict[str, Any]) -> None:
        if event.get("step") == 5:
            raise Killed

    execution = Execution(checkpoint_every_s=0.0)
    with pytest.raises(Killed):
        run_pack([fit], store_uri=store.uri, execution=execution, report=report)
    weights = Path(store.storage.root, "partial", fit.folder, "step-000000004", "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    run_pack([fit], store_uri=store.uri, execution=execution, report=quiet)
    run_pack([fit], store_uri=whole.uri, execution=execution, report=quiet)
    assert files_of(store, fit) == files_of(whole, fit)


def test_the_order_of_fits_in_a_process_does_not_show(folder: Path, tmp_path: Path) -> None:
    fits = fits_of(folder)
    one, other = open_store(tmp_path / "one"), open_store(tmp_path / "other")
    run_pack(fits, store_uri=one.uri, execution=Execution(), report=quiet)
    for _ in range(2):  # the first time round, students come before their supervisors and are left
        run_pack(list(reversed(fits)), store_uri=other.uri, execution=Execution(), report=quiet)
    for fit in fits:
        assert files_of(one, fit) == files_of(other, fit)


@pytest.mark.parametrize("method", ["naive", "confidence"])
def test_execution_knobs_do_not_change_the_numbers(method: str, folder: Path, tmp_path: Path) -> None:
    fits = [f for f in fits_of(folder, methods=[method], pairs=[["small", "big"]], training=_odd_batches()) if f.labels]
    student = fits[0]
    assert student.labels
    found = {}
    for name, execution in {
        "plain": Execution(),
        "micro-batches": Execution(micro_batch_size=5),
        "zero-0": Execution(zero_stage=0),
        "zero-2": Execution(zero_stage=2, micro_batch_size=7),
        "zero-3": Execution(zero_stage=3),
        "activation checkpointing": Execution(activation_checkpointing=True),
    }.items():
        store = open_store(tmp_path / name)
        run_pack([*student.labels, student], store_uri=store.uri, execution=execution, report=quiet)
        found[name] = probabilities(store, student)
    for name, values in found.items():
        np.testing.assert_allclose(values, found["plain"], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_adapters_learn_and_the_rest_stays(kind: str, tmp_path: Path) -> None:
    save_model(tmp_path / "m", kind)
    save_task(tmp_path)
    training = _odd_batches() | {"tune": "lora", "lora_rank": 4}
    grid = {"models": [{"name": "m", "path": "m"}], "training": training}
    found = {}
    for name, execution in {"plain": Execution(), "zero-3": Execution(zero_stage=3, micro_batch_size=7)}.items():
        [supervisor, *_] = load_plan(save_study(tmp_path, grid=grid)).fits
        store = open_store(tmp_path / name)
        run_pack([supervisor], store_uri=store.uri, execution=execution, report=quiet)
        assert store.read_failures() == {}
        found[name] = probabilities(store, supervisor)
    np.testing.assert_allclose(found["zero-3"], found["plain"], atol=1e-4)
    built, _ = models.build(
        supervisor.model, setting="classification", tune="lora", lora_rank=4, execution=Execution(), bf16=False, seed=0
    )
    learned = {name for name, parameter in built.named_parameters() if parameter.requires_grad}
    assert learned and all("lora_" in name or name.startswith("head.") for name in learned)
    whole = load_plan(save_study(tmp_path, grid=grid | {"training": _odd_batches()})).fits[0]
    assert whole.key != supervisor.key and "lora_rank" not in whole.identity["training"]


def _odd_batches() -> dict[str, Any]:
    """96 rows in batches of 20: the last batch is not full."""
    return {"epochs": 1, "batch_size": 20, "learning_rate": 0.01, "warmup_fraction": 0.1, "max_grad_norm": 1.0}


TWO_WORKERS = """
import os, sys
import torch.distributed as dist
dist.init_process_group("gloo")
from w2s_ray.fit import Execution
from w2s_ray.plan import load_plan
from w2s_ray.training.pack import run_pack
plan = load_plan(sys.argv[1])
stage, precision = sys.argv[3].split()
run_pack(list(plan.fits), store_uri=sys.argv[2], execution=Execution(workers=2, zero_stage=int(stage)), report=lambda e: None)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("stage", [1, 3])
def test_two_workers_give_the_numbers_of_one(stage: int, folder: Path, tmp_path: Path) -> None:
    methods = ["confidence", "combined", "reliability", "sieve"]
    grid = {"methods": methods, "pairs": [["small", "big"]], "training": _odd_batches()}
    fits = fits_of(folder, **grid)
    one, two = open_store(tmp_path / "one"), open_store(tmp_path / "two")
    run_pack(fits, store_uri=one.uri, execution=Execution(), report=quiet)
    _two_processes(folder / "study.yaml", two, f"{stage} fp32")
    assert two.read_failures() == {}
    for fit in fits:
        np.testing.assert_allclose(probabilities(two, fit), probabilities(one, fit), atol=1e-4)


def _two_processes(study: Path, store: Store, what: str) -> None:
    done = _torchrun(TWO_WORKERS, study, store, what)
    assert done.returncode == 0, done.stderr[-3000:]


def _torchrun(script: str, study: Path, store: Store, what: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    path = study.with_name("two.py")
    path.write_text(script)
    return subprocess.run(
        [*command, str(path), str(study), store.uri, what],
        env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


ONE_WORKER_FAILS = """
import os, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
from w2s_ray.fit import Execution
from w2s_ray.plan import load_plan
from w2s_ray.training import data, loop, pack
plan, rank = load_plan(sys.argv[1]), dist.get_rank()
prepare, step, in_hand = data.prepare, loop.step, []
def fails_to_read(fit):
    in_hand.append(fit)
    if rank == 1 and fit.seed == 1:
        raise OSError("the disk of worker 1 is gone")
    return prepare(fit)
def runs_out(engine, sequences, *arguments, **more):
    if rank == 1 and in_hand[-1] == plan.fits[0] and engine.train_micro_batch_size_per_gpu() > 5:
        raise torch.OutOfMemoryError("out of memory")
    return step(engine, sequences, *arguments, **more)
data.prepare = fails_to_read
loop.step = runs_out
pack.run_pack(list(plan.fits), store_uri=sys.argv[2], execution=Execution(workers=2), report=lambda e: None)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_what_one_worker_meets_the_others_learn(folder: Path, tmp_path: Path) -> None:
    """A file that one worker can't read fails the Fit on all of them and the next one runs; one worker out of memory ends
    the group, and the next group takes smaller micro-batches."""
    grid = {"models": [{"name": "small", "path": "small"}], "seeds": 2, "training": _odd_batches()}
    fits = fits_of(folder, **grid)
    store, study = open_store(tmp_path / "store"), folder / "study.yaml"
    assert _torchrun(ONE_WORKER_FAILS, study, store).returncode == 1, "ten rows don't fit"
    assert store.advised_micro_batch(fits[0]) == 5
    assert not store.read_failures(), "that a fellow went away is no failure of the Fit"
    done = _torchrun(ONE_WORKER_FAILS, study, store)
    assert done.returncode == 0, done.stderr[-3000:]
    failures = store.read_failures()
    for fit in fits:
        reason = failures.get(fit.key, {}).get("reason")
        assert reason == ("the disk of worker 1 is gone" if fit.seed == 1 and not fit.labels else None)
        assert store.is_committed(fit) == (fit.seed == 0)
    record = store.read_file(fits[0].folder, "fit.json").decode()
    assert '"micro_batch_size": 5' in record
    assert not Path(store.storage.root, "partial", fits[0].folder).exists(), "forgotten with the commit"


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_bf16_stays_near_fp32(zero_stage: Any, folder: Path, tmp_path: Path) -> None:
    [full, *_] = fits_of(folder)
    half = replace(full, training=replace(full.training, precision="bf16"))
    assert full.key != half.key
    store = open_store(tmp_path / "store")
    run_pack([full, half], store_uri=store.uri, execution=Execution(zero_stage=zero_stage), report=quiet)
    difference = np.abs(probabilities(store, full) - probabilities(store, half))
    assert 0 < difference.max() < 0.1


def test_the_optimizer_is_that_of_plain_torch(folder: Path, tmp_path: Path) -> None:
    """Twelve steps through DeepSpeed against twelve in a bare loop: the same weights."""
    fit = fits_of(folder, training=_odd_batches() | {"weight_decay": 0.1, "optimizer": "adamw"})[0]
    engines.join_processes()
    draw = torch.Generator().manual_seed(0)
    batches = [(torch.randint(4, 40, (20, 5), generator=draw), torch.rand(20, generator=draw)) for _ in range(12)]
    bare, _ = models.build(fit.model, setting="classification", tune="all", execution=Execution(), bf16=False, seed=0)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=0.01, weight_decay=0.1)
    for stage in (0, 1, 2, 3):
        wrapped, _ = models.build(
            fit.model, setting="classification", tune="all", execution=Execution(), bf16=False, seed=0
        )
        engine = engines.start(wrapped, training=fit.training, execution=Execution(zero_stage=stage))  # type: ignore[arg-type]
        for i, (ids, targets) in enumerate(batches):
            engines.set_rate(engine, engines.rate_at(i, 12, training=fit.training))
            loop.step(
                engine, [(row,) for row in ids.tolist()], targets.numpy(), weights=np.ones(20), verified=np.zeros(20, bool), setting="classification", objective=loop.methods.objective(fit.method, setting="classification"), progress=i / 12,
                batch_size=20, pad_id=0,
            )  # fmt: skip
            if stage == 0:
                for group in optimizer.param_groups:
                    group["lr"] = engines.rate_at(i, 12, training=fit.training)
                logits = bare(ids, torch.ones_like(ids))
                loss = loop.methods.objective(fit.method, setting="classification").at(0, None)(logits, targets).mean()
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
                optimizer.step()
        weights = loop.checkpoint.full_weights(engine)
        engines.stop(engine)
        for name, parameter in bare.named_parameters():
            torch.testing.assert_close(weights[name], parameter.detach(), atol=2e-5, rtol=1e-3, msg=f"{stage} {name}")


def test_hundreds_of_engines_leave_no_trace(folder: Path) -> None:
    fit = fits_of(folder)[0]
    engines.join_processes()
    objective = loop.methods.objective(fit.method, setting="classification")

    def one(stage: Any) -> None:
        classifier, _ = models.build(
            fit.model, setting="classification", tune="all", execution=Execution(), bf16=False, seed=0
        )
        engine = engines.start(classifier, training=fit.training, execution=Execution(zero_stage=stage))
        loop.step(
            engine, [([5, 6],)] * 16, np.ones(16, np.float32), weights=np.ones(16), verified=np.zeros(16, bool), setting="classification", objective=objective,
            progress=0.0, batch_size=16, pad_id=0,
        )  # fmt: skip
        engines.stop(engine)

    def state() -> tuple[int, int]:
        gc.collect()
        return psutil.Process().memory_info().rss, sum(isinstance(o, torch.nn.Parameter) for o in gc.get_objects())

    for stage in (0, 1, 2, 3):
        for _ in range(5):
            one(stage)
        rss_before, parameters_before = state()
        for _ in range(15):
            one(stage)
        rss_after, parameters_after = state()
        if stage < 3:  # ZeRO-3 leaves empty shells behind
            assert parameters_after <= parameters_before, f"ZeRO-{stage} keeps parameters of engines that are gone"
        assert rss_after - rss_before < 12 * 2**20, f"ZeRO-{stage} grew by {(rss_after - rss_before) / 2**20:.0f} MiB"


# --- failures -----------------------------------------------------------------------------------------------------


def test_a_nan_fails_alone_with_its_step(folder: Path, tmp_path: Path) -> None:
    fits = fits_of(folder)
    supervisor = fits[0]
    sick = replace(supervisor, training=replace(supervisor.training, learning_rate=1e30))
    store = open_store(tmp_path / "store")
    events: list[dict[str, Any]] = []
    run_pack(
        [sick, replace(fits[-1], labels=(sick,)), supervisor],
        store_uri=store.uri,
        execution=Execution(),
        report=events.append,
    )
    failures = store.read_failures()
    assert "step" in failures[sick.key]["reason"]
    assert failures[sick.key]["kind"] == "nan"
    assert [e["event"] for e in events if e["event"] != "step"] == ["start", "failed", "done"]
    assert store.is_committed(supervisor) and not store.is_committed(sick)


def test_out_of_memory_halves_the_micro_batch(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = fits_of(folder)[0]
    real, tried = loop.engines.start, []

    def start(model: Any, *, training: Any, execution: Execution) -> Any:
        tried.append(execution.micro_batch_size)
        if execution.micro_batch_size is None or execution.micro_batch_size > 4:
            raise torch.OutOfMemoryError("no memory left")
        return real(model, training=training, execution=execution)

    monkeypatch.setattr(loop.engines, "start", start)
    store = open_store(tmp_path / "store")
    run_pack([fit], store_uri=store.uri, execution=Execution(), report=quiet)
    assert tried == [16, 8, 4] and store.is_committed(fit)


def test_labels_that_do_not_match_are_refused(folder: Path, tmp_path: Path) -> None:
    fits = fits_of(folder)
    student = next(f for f in fits if f.labels)
    assert student.labels
    store = open_store(tmp_path / "store")
    run_pack([*student.labels], store_uri=store.uri, execution=Execution(), report=quiet)
    again = tmp_path / "again"
    again.mkdir()
    table = store.read_table(student.labels[0], "labels.parquet")
    store.quarantine(student.labels[0].folder)
    pq.write_table(table.slice(1), again / "labels.parquet")
    store.commit(student.labels[0], again)
    run_pack([student], store_uri=store.uri, execution=Execution(), report=quiet)
    assert "lacks 1 of the 96 rows" in store.read_failures()[student.key]["reason"]


def test_rows_too_long_for_any_model_are_dropped_for_all(tmp_path: Path) -> None:
    save_study(tmp_path)
    study = save_study(
        tmp_path, grid={"training": {"epochs": 1, "max_tokens": 4}, "split": {"num_train": 40, "num_test": 20}}
    )
    fits = load_plan(study).fits
    store = open_store(tmp_path / "store")
    run_pack(list(fits), store_uri=store.uri, execution=Execution(), report=quiet)
    assert '"num_too_long": 0' not in store.read_file(fits[0].folder, "fit.json").decode()
    ids = {tuple(store.read_table(fit, "test.parquet").column("id").to_pylist()) for fit in fits}
    assert len(ids) == 1, "one test set for all"


def test_words_are_known() -> None:
    assert len(set(WORDS)) == len(WORDS)
