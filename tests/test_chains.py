"""Methods that shape the DAG or the labels: from a study's words to trained students, on tiny models."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load
from typer.testing import CliRunner

from w2s_ray import cli
from w2s_ray.errors import InputError
from w2s_ray.fit import Execution, Fit
from w2s_ray.planning import Cell, Plan, load_plan
from w2s_ray.results import write_results
from w2s_ray.store import Store, open_store
from w2s_ray.training.data import prepare
from w2s_ray.training.model import ModelSpec, WarmStart
from w2s_ray.training.pack import run_pack
from w2s_ray.training.prompts import apply_prompt_method
from w2s_ray.training.settings import comparison
from w2s_ray.training.training_set import TrainingSet, build_training_set, read_labels

from tiny import save_model, save_rewriting, save_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three random Llamas and a task of each setting."""
    folder = tmp_path_factory.mktemp("ladder")
    for seed, name in enumerate("sml"):
        save_model(folder / name, "llama", seed=seed)
    save_task(folder)
    save_rewriting(folder)
    return folder


def planned(folder: Path, *methods: Any, task: str = "toy.yaml", **grid: Any) -> Plan:
    content = {
        "models": [{"name": name, "path": name} for name in "sml"],
        "pairs": [["s", "l"]],
        "tasks": [task],
        "methods": list(methods),
        "controls": False,
        "split": {"num_train": 96, "num_test": 64},
        "training": {"epochs": 1, "batch_size": 16, "learning_rate": 0.01},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"name": "chains", "grids": [content | grid]}))
    return load_plan(path)


def quiet(_: object) -> None:
    pass


def trained(plan: Plan, tmp_path: Path) -> Store:
    store = open_store(tmp_path / "store")
    run_pack(list(plan.fits), store_uri=store.uri, execution=Execution(), report=quiet)
    assert store.read_failures() == {}
    return store


def learned(fit: Fit, store: Store) -> TrainingSet:
    return build_training_set(fit, prepare(fit), None, store)


def scores(cells: tuple[Cell, ...], store: Store, tmp_path: Path) -> dict[str, dict[str, Any]]:
    table = write_results(cells, study="chains", store=store, out=tmp_path / "out")
    return {row["method"]: row for row in table.to_dicts()}


# --- the DAG ------------------------------------------------------------------------------------------------------


def test_a_chain_climbs_the_sizes_and_each_step_sees_rows_of_its_own(folder: Path) -> None:
    [cell] = planned(folder, "bootstrap").cells
    student = cell.student
    [middle] = student.labels
    assert (student.model.size, student.half, middle.model.size, middle.half) == ("l", "B2/2", "m", "B1/2")
    assert middle.labels == (cell.supervisor,) and cell.ceiling.half == "B"
    rows = prepare(student).parts["B"]
    seen = [set(rows.part(step.part).ids) for step in (middle, student)]
    assert not seen[0] & seen[1] and seen[0] | seen[1] == set(rows.ids)
    assert abs(len(seen[0]) - len(seen[1])) <= 2


WITHOUT_FRESH = {"num_train": 48, "num_test": 64}
FRESH = WITHOUT_FRESH | {"fresh": 2}


def test_a_chain_over_fresh_parts_has_a_full_set_at_each_step(folder: Path) -> None:
    plain, plan = (planned(folder, "naive", "bootstrap", split=split) for split in (WITHOUT_FRESH, FRESH))
    naive, bootstrap = plan.cells
    [middle] = bootstrap.student.labels
    [labeller] = middle.labels
    assert (middle.model.size, middle.half, bootstrap.student.half, labeller.half) == ("m", "F1", "B", "A")
    assert bootstrap.supervisor == naive.supervisor and bootstrap.ceiling == naive.ceiling
    assert {fit.key for fit in plan.fits} > {fit.key for fit in plain.fits if "/" not in fit.half}, "other Fits stay"
    parts = [set(prepare(fit).parts[fit.half].ids) for fit in (labeller, middle, bootstrap.student)]
    assert [len(ids) for ids in parts] == [48] * 3 and len(set.union(*parts)) == 3 * 48
    assert prepare(labeller).parts["A"].ids == prepare(naive.supervisor).parts["A"].ids


def test_fresh_parts_are_learned_with_labels_of_the_step_before(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, {"name": "iterate", "rounds": 3}, split=FRESH)
    [cell] = plan.cells
    store = trained(plan, tmp_path)
    chain = [cell.student, *cell.student.ancestors]
    assert [(fit.model.size, fit.half) for fit in chain] == [("l", "B"), ("l", "F2"), ("l", "F1"), ("s", "A")]
    for fit in chain[:-1]:
        rows = learned(fit, store).rows
        weak = read_labels(fit.labels[0], prepare(fit).parts[fit.half].in_order_of(rows.ids), store)
        assert len(rows) == 48 and rows.labels == pytest.approx(weak.values)
    kept = [set(store.read_table(fit, "labels.parquet")["id"].to_pylist()) for fit in (*chain[1:], cell.supervisor)]
    assert [len(ids) for ids in kept] == [48, 96, 96, 48], "half B, and the next fresh part if there is one"
    probabilities = [
        dict(zip(table["id"].to_pylist(), table["probability"].to_pylist(), strict=True))
        for table in (store.read_table(fit, "labels.parquet") for fit in (cell.supervisor, chain[-1]))
    ]
    assert probabilities[0].items() <= probabilities[1].items(), "two Fits of the same rows"
    row = scores(plan.cells, store, tmp_path)[cell.method]
    assert row["status"] == "done" and row["half_b_agreement"] is not None and row["half_b_weak_score"] is not None
    runs, parts = (pl.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in ("runs", "parts"))
    assert set(runs["key"]) == {fit.key for fit in plan.fits} and set(parts["part"]) == {"A", "B", "F1", "F2", "test"}


def test_too_few_fresh_parts_are_refused_with_the_number_that_is_needed(folder: Path) -> None:
    chain = {"name": "iterate", "rounds": 4}
    with pytest.raises(InputError, match=r"grids\[0\].split.fresh: given 2, but a chain from s .* has 4 steps.*give 3"):
        planned(folder, chain, split=FRESH)
    with pytest.raises(InputError, match="fresh: given 1, but without num_train the halves take all rows"):
        planned(folder, chain, split={"fresh": 1})


def test_a_chain_without_a_size_between_is_one_step(folder: Path) -> None:
    plan = planned(folder, "naive", "bootstrap", pairs=[["m", "l"]])
    by_method = {cell.method: cell for cell in plan.cells}
    assert by_method["bootstrap"].student is not None
    assert by_method["bootstrap"].student.key == by_method["naive"].student.key and len(plan.fits) == 3


def test_a_named_chain(folder: Path) -> None:
    [cell] = planned(folder, {"name": "bootstrap", "through": ["m"], "loss": "confidence"}).cells
    assert cell.method == "bootstrap(loss=confidence, through=m)"
    assert [each.method.name for each in (cell.student, *cell.student.labels)] == ["confidence", "confidence"]


def test_iteration_hands_labels_to_a_fresh_copy_of_the_student(folder: Path) -> None:
    [cell] = planned(folder, {"name": "iterate", "rounds": 3}).cells
    chain = [cell.student, *cell.student.ancestors]
    assert [(each.model.size, each.half) for each in chain] == [("l", "B3/3"), ("l", "B2/3"), ("l", "B1/3"), ("s", "A")]


def test_the_members_of_an_ensemble(folder: Path) -> None:
    seeds, sizes = planned(folder, "ensemble", {"name": "ensemble", "members": "sizes"}, pairs=[["m", "l"]]).cells
    assert [(each.model.size, each.seed) for each in seeds.student.labels] == [("m", 0), ("m", 1000), ("m", 2000)]
    assert seeds.student.labels[0].key == seeds.supervisor.key
    assert [each.model.size for each in sizes.student.labels] == ["s", "m"]


def test_ensembles_of_different_seeds_share_no_member(folder: Path) -> None:
    members = [{fit.key for fit in cell.student.labels} for cell in planned(folder, "ensemble", seeds=3).cells]
    assert [len(keys) for keys in members] == [3, 3, 3] and len(set.union(*members)) == 9


def test_a_generative_start_is_the_ceilings_and_the_supervisors_too(folder: Path) -> None:
    [cell] = planned(folder, "generative").cells
    starts = [each.warm_start for each in (cell.supervisor, cell.student, cell.ceiling)]
    assert all(starts) and [each.model.size for each in starts if each] == ["s", "l", "l"]
    assert starts[1] == starts[2] and starts[1] is not None and starts[1].role == "start"


def test_the_papers_generative_start_has_a_plain_supervisor(folder: Path) -> None:
    [cell] = planned(folder, {"name": "generative", "supervisor": "plain"}).cells
    [naive] = planned(folder, "naive").cells
    assert cell.supervisor.key == naive.supervisor.key and cell.student.labels == (cell.supervisor,)
    assert cell.student.warm_start == cell.ceiling.warm_start is not None


def test_parents_come_before_their_children_however_they_are_tangled(folder: Path) -> None:
    plan = planned(folder, "bootstrap", "iterate", "ensemble", "generative", "few_shot", "zero_shot", "strong_on_a")
    place = {fit.key: i for i, fit in enumerate(plan.fits)}
    for fit in plan.fits:
        assert all(place[parent.key] < place[fit.key] for parent in fit.parents)


@pytest.mark.parametrize(
    ("method", "task", "grid", "message"),
    [
        (
            "product",
            "writing.yaml",
            {},
            "doesn't go with a generation: the labels of a generation are written moves or words",
        ),
        ({"name": "filter", "loss": "window"}, "writing.yaml", {}, "a window around 1/2"),
        ("told", "choosing.yaml", {}, "doesn't go with a comparison"),
        ("zero_shot", "toy.yaml", {"training": {"tune": "head"}}, "a probe reads features and writes nothing"),
        ({"name": "bootstrap", "through": ["xl"]}, "toy.yaml", {}, "no size 'xl'"),
        ({"name": "bootstrap", "steps": 2}, "toy.yaml", {}, "allowed: loss, through"),
        ({"name": "filter", "keep": 0}, "toy.yaml", {}, "greater than 0"),
        ({"name": "filter", "loss": "filter"}, "toy.yaml", {}, "loss"),
        ("bootstraping", "toy.yaml", {}, "bootstrap"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_reason(
    folder: Path, method: Any, task: str, grid: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception):  # noqa: B017 - the study file is written, then asked for at the door
        planned(folder, method, task=task, **grid)
    result = CliRunner().invoke(cli.app, ["plan", str(folder / "study.yaml")])
    assert result.exit_code == 2 or "methods" in str(result.exception)
    assert message in str(result.exception) + result.output


def test_grids_that_share_a_task_need_labels(folder: Path) -> None:
    plan = planned(folder, "naive")
    study = yaml.safe_load((folder / "study.yaml").read_text())
    study["grids"].append(study["grids"][0] | {"training": {"epochs": 2}})
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(InputError, match="give one of the grids a 'label'"):
        load_plan(folder / "study.yaml")
    study["grids"][1]["label"] = "long"
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    cells = load_plan(folder / "study.yaml").cells
    assert [cell.task for cell in cells] == ["toy", "toy (long)"]
    assert cells[0].student.key == plan.cells[0].student.key, "a label is no part of a Fit"


def test_a_range_of_difficulty_needs_a_column(folder: Path) -> None:
    with pytest.raises(InputError, match="names no difficulty column"):
        planned(folder, "naive", split={"num_train": 96, "num_test": 64, "difficulty": {"max": 3}})


# --- what is learned ----------------------------------------------------------------------------------------------


def test_every_method_trains_in_every_setting_that_takes_it(folder: Path, tmp_path: Path) -> None:
    words = ["bootstrap", "ensemble", "filter", "combined", "noise", "shuffled", "generative", "zero_shot", "few_shot"]
    for task, more in {
        "writing.yaml": ["entropy", "adaptconf"],
        "choosing.yaml": ["product", "reverse_kl", "sieve"],
        "toy.yaml": ["window", "relabel", {"name": "sieve", "how": "topological"}, "reliability", "told"],
    }.items():
        plan = planned(folder, *words, *more, task=task)
        found = scores(plan.cells, trained(plan, tmp_path / task), tmp_path / task)
        assert len(found) == len(words) + len(more)
        assert {row["status"] for row in found.values()} <= {"done", "constant"}, "six steps may teach one answer only"


def test_labels_and_weights_are_those_of_the_method(folder: Path, tmp_path: Path) -> None:
    methods = [
        "naive",
        {"name": "filter", "keep": 0.25},
        {"name": "combined", "verified": 0.5, "truth_weight": 2.0},
        "noise",
    ]
    plan = planned(folder, *methods)
    store = trained(plan, tmp_path)
    naive, filtered, combined, noise = (learned(cell.student, store) for cell in plan.cells)
    truth = dict(zip(prepare(plan.fits[0]).parts["B"].ids, prepare(plan.fits[0]).parts["B"].labels, strict=True))
    weak = dict(zip(naive.rows.ids, naive.rows.labels, strict=True))
    assert len(naive.rows) == 96 and 0.25 * 96 - 1 <= len(filtered.rows) <= 0.25 * 96 + 1
    threshold = min(abs(weak[id_] - 0.5) for id_ in filtered.rows.ids)
    assert threshold >= np.median([abs(each - 0.5) for each in weak.values()])
    assert combined.verified.sum() == 48 and set(combined.weights[combined.verified]) == {2.0}
    for id_, answer, known in zip(combined.rows.ids, combined.rows.labels, combined.verified, strict=True):
        assert answer == (truth[id_] if known else weak[id_])
    num_weak_errors = sum((weak[id_] > 0.5) != truth[id_] for id_ in weak)
    answers = noise.rows.labels
    assert sum(a != truth[id_] for id_, a in zip(noise.rows.ids, answers, strict=True)) == num_weak_errors


def test_a_student_keeps_its_answers_to_the_rows_that_it_learned_from(folder: Path, tmp_path: Path) -> None:
    methods = ["naive", "filter", {"name": "shuffled", "labels": "truth"}, "noise", "bootstrap", "zero_shot"]
    training = {"epochs": 30, "batch_size": 16, "learning_rate": 0.02, "validation": 0.25, "evals_per_epoch": 1}
    plan = planned(folder, *methods, training=training)
    store = trained(plan, tmp_path)
    kept = {
        cell.method: pl.DataFrame(store.read_table(cell.student, "half_b.parquet"))
        for cell in plan.cells
        if "half_b.parquet" in store.read_done(cell.student.folder)["files"]
    }
    assert list(kept) == ["naive", "filter", "shuffled(labels=truth)", "noise"], (
        "a chain has no whole half, zero_shot none"
    )
    for cell in plan.cells[:4]:
        rows = learned(cell.student, store).rows
        labels = pl.DataFrame({"id": rows.ids, "label": rows.labels})
        both = kept[cell.method].join(labels, on="id")
        assert both.height == len(rows) == kept[cell.method].height
        assert ((both["probability"] > 0.5) == (both["label"] > 0.5)).mean() > 0.9, "by now it repeats its own labels"
    others = (plan.cells[0].supervisor, plan.cells[0].ceiling)
    assert not any("half_b.parquet" in store.read_done(fit.folder)["files"] for fit in others)


def test_a_naive_student_on_the_budget_of_another_method(folder: Path, tmp_path: Path) -> None:
    methods = ["iterate", {"name": "naive", "rows": 0.5}, {"name": "naive", "steps": 0.5}, "naive"]
    training = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01}
    plan = planned(folder, *methods, training=training)
    store = trained(plan, tmp_path)
    iterate, rows, steps, naive = (cell.student for cell in plan.cells)
    assert [cell.method for cell in plan.cells[1:3]] == ["naive(rows=0.5)", "naive(steps=0.5)"]
    assert learned(rows, store).rows.ids == learned(iterate, store).rows.ids, "the rows of a chain's last step"
    assert learned(steps, store).rows.ids == learned(naive, store).rows.ids

    def num_steps(fit: Fit) -> int:
        return int(store.read_table(fit, "curve.parquet")["step"][-1].as_py())

    assert num_steps(naive) == 12 and {num_steps(fit) for fit in (iterate, rows, steps)} == {6}
    flops = [json.loads(store.read_file(fit.folder, "fit.json"))["provenance"]["flops"] for fit in (naive, steps)]
    assert flops[1] == pytest.approx(flops[0] / 2, rel=0.01)


def test_hard_labels_make_the_errors_of_the_soft_ones(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, "naive", "harden")
    store = trained(plan, tmp_path)
    soft, hard = (learned(cell.student, store).rows.labels for cell in plan.cells)
    assert set(hard.tolist()) == {0.0, 1.0} and ((soft > 0.5) == hard).all() and not (soft == hard).any()


def test_the_score_of_labels_and_of_an_ensemble_are_kept(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, "naive", "ensemble")
    store = trained(plan, tmp_path)
    scores(plan.cells, store, tmp_path)
    runs = {run["key"]: run for run in pl.read_parquet(tmp_path / "out" / "runs.parquet").to_dicts()}
    naive, ensemble = (cell.student for cell in plan.cells)
    half_b, test = (prepare(naive).parts[part] for part in ("B", "test"))
    weak = read_labels(naive.labels[0], half_b, store)
    assert runs[naive.key]["label_score"] == pytest.approx(weak.are_right(half_b.labels).mean())
    members = [read_labels(fit, test, store, file="test.parquet").values for fit in ensemble.labels]
    is_right = (np.mean(members, axis=0) > 0.5) == (test.labels > 0.5)
    assert runs[ensemble.key]["ensemble_score"] == pytest.approx(is_right.mean())
    assert {fit.key for fit in plan.fits} == runs.keys(), "with the members"
    assert runs[naive.key]["ensemble_score"] is None and runs[plan.cells[0].ceiling.key]["label_score"] is None


def test_both_losses_are_logged_apart(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, "naive", "combined")
    store = trained(plan, tmp_path)
    naive, combined = (
        pl.read_parquet(io.BytesIO(store.read_file(cell.student.folder, "curve.parquet"))) for cell in plan.cells
    )
    assert naive["verified_loss"].is_null().all() and combined["verified_loss"].is_not_null().all()
    assert (combined["verified_loss"] != combined["train_loss"]).all()


def test_held_out_rows_are_not_learned_and_say_where_to_stop(folder: Path, tmp_path: Path) -> None:
    training = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "validation": 0.25}
    plan = planned(folder, "naive", training=training)
    store = trained(plan, tmp_path)
    student = plan.cells[0].student
    taught = learned(student, store)
    assert taught.held_out is not None and len(taught.held_out) == 24 and len(taught.rows) == 72
    assert not set(taught.held_out.ids) & set(taught.rows.ids)
    curve = pl.read_parquet(io.BytesIO(store.read_file(student.folder, "curve.parquet")))
    assert curve["validation_loss"].is_not_null().all() and curve["validation_accuracy"].is_between(0, 1).all()
    without = planned(folder, "naive", training=training | {"validation": 0.0})
    assert without.cells[0].student.key != student.key


def test_a_student_that_is_told_the_label_repeats_it(folder: Path, tmp_path: Path) -> None:
    training = {"epochs": 6, "batch_size": 16, "learning_rate": 0.01}
    plan = planned(folder, "naive", "told", training=training)
    found = scores(plan.cells, trained(plan, tmp_path), tmp_path)
    assert found["told"]["agreement"] > 0.95 > found["naive"]["agreement"]


def test_zero_shot_is_the_pretrained_model(folder: Path, tmp_path: Path) -> None:
    """A language model that has learned to write the right completion prefers it without any training of a judge."""
    plan = planned(folder, "zero_shot", "naive", task="writing.yaml")
    store = trained(plan, tmp_path)
    zero_shot = next(cell for cell in plan.cells if cell.method == "zero_shot")
    facts = json.loads(store.read_file(zero_shot.student.folder, "fit.json"))
    assert facts["provenance"]["flops"] == 0 and facts["role"] == "untrained"
    curve = pl.read_parquet(io.BytesIO(store.read_file(zero_shot.student.folder, "curve.parquet")))
    assert curve.is_empty()
    found = scores(plan.cells, store, tmp_path)
    assert found["naive"]["zero_shot_score"] == found["zero_shot"]["student_score"] is not None


def test_a_generative_start_has_learned_to_write_and_is_started_from(folder: Path, tmp_path: Path) -> None:
    training = {"epochs": 1, "batch_size": 16, "learning_rate": 0.01, "evals_per_epoch": 2}
    plan = planned(folder, {"name": "generative", "epochs": 3}, task="choosing.yaml", training=training)
    store = trained(plan, tmp_path)
    student = plan.cells[0].student
    assert student.warm_start is not None
    assert "model.safetensors" in store.read_done(student.warm_start.folder)["files"]
    curve = pl.read_parquet(io.BytesIO(store.read_file(student.warm_start.folder, "curve.parquet")))
    assert curve["train_loss"][-1] < 0.8 * curve["train_loss"][0] and curve["test_loss"].is_null().all()
    weights = load(store.read_file(student.warm_start.folder, "model.safetensors"))
    fresh, started = (
        comparison.build_model(ModelSpec(student.model, warm_start=warm_start))[0].get_parameter(
            "backbone.layers.0.mlp.up_proj.weight"
        )
        for warm_start in (None, WarmStart(student.warm_start.key, weights))
    )
    torch.testing.assert_close(started.detach(), weights["causal.model.layers.0.mlp.up_proj.weight"])
    assert not torch.equal(fresh, started)


def test_few_shots_stand_in_the_prompt(folder: Path, tmp_path: Path) -> None:
    methods = [
        {"name": "few_shot", "shots": 2, "labels": "truth"},
        {"name": "few_shot", "shots": 40, "labels": "truth"},
    ]
    plan = planned(folder, *methods)
    store = open_store(tmp_path / "store")
    run_pack(list(plan.fits), store_uri=store.uri, execution=Execution(), report=quiet)
    [failure] = store.read_failures().values()
    assert "the model reads 64; lower 'shots'" in failure["reason"]
    fit = plan.cells[0].student
    before, after = prepare(fit).parts["test"], apply_prompt_method(fit, prepare(fit), store).parts["test"]
    *shots, question = after.texts[0].split("\n\n")
    assert sorted(shot.split()[-1] for shot in shots) == ["0", "1"], "one of each class"
    assert question == f"{before.texts[0]}\nAnswer (0 or 1):"
    assert all(len(a[0]) > len(b[0]) for a, b in zip(after.sequences, before.sequences, strict=True))


def test_easy_to_hard_from_the_study_to_the_figure(folder: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from w2s_ray.analysis.report import write_report

    rows = pq.read_table(folder / "toy.parquet").to_pylist()
    hard = [row | {"words": len(row["text"].split())} for row in rows]
    pq.write_table(pa.Table.from_pylist(hard), folder / "hard.parquet")
    task = {"name": "hard", "setting": "classification", "train": "hard.parquet", "difficulty": "words"}
    (folder / "hard.yaml").write_text(yaml.safe_dump(task))
    plan = planned(folder, "naive", task="hard.yaml", label="all")
    study = yaml.safe_load((folder / "study.yaml").read_text())
    easy = study["grids"][0] | {"label": "easy", "split": {"num_train": 60, "num_test": 64, "difficulty": {"max": 4}}}
    (folder / "study.yaml").write_text(yaml.safe_dump(study | {"grids": [*study["grids"], easy]}))
    plan = load_plan(folder / "study.yaml")
    store = trained(plan, tmp_path)
    of_easy = next(cell for cell in plan.cells if cell.label == "easy").student
    assert all(len(text.split()) <= 4 for text in prepare(of_easy).parts["B"].texts)
    write_results(plan.cells, study="chains", store=store, out=tmp_path / "out")
    write_report(tmp_path / "out")
    table = pl.read_csv(tmp_path / "out" / "tables" / "difficulty.csv")
    assert set(table["task"]) == {"hard (all)", "hard (easy)"} and set(table["role"]) == {
        "supervisor",
        "student",
        "ceiling",
    }
    one = table.filter((pl.col("task") == "hard (easy)") & (pl.col("role") == "ceiling"))
    assert one["num_items"].sum() == 64 and one["difficulty"].is_sorted()
    assert (tmp_path / "out" / "figures" / "classification-difficulty.svg").exists()
