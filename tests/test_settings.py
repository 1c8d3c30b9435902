"""Generation, comparison and probes: what is written is what scores, order does not matter, features are read once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from w2s_ray import families, tasks
from w2s_ray.errors import InputError
from w2s_ray.families.model_folder import count_params
from w2s_ray.fit import Execution, Fit
from w2s_ray.methods import confidence, naive
from w2s_ray.plan import load_plan
from w2s_ray.results import write_results
from w2s_ray.store import Store, open_store
from w2s_ray.study import ModelEntry
from w2s_ray.training import features
from w2s_ray.training import model as models
from w2s_ray.training.data import pad
from w2s_ray.training.pack import run_pack

from tiny import CONFIGS, save_model, save_rewriting, save_study

LEARNING = {"epochs": 12, "batch_size": 16, "learning_rate": 0.02, "evals_per_epoch": 1}
EXECUTIONS = {
    "micro-batches": Execution(micro_batch_size=5),
    "zero-2": Execution(zero_stage=2, micro_batch_size=7),
    "zero-3": Execution(zero_stage=3),
}


def quiet(event: dict[str, Any]) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    save_rewriting(folder)
    save_study(folder)
    return folder


def study_of(folder: Path, task: str, **grid: Any) -> Path:
    return save_study(folder, grid={"tasks": [task], "pairs": [["small", "big"]]} | grid)


def run(study: Path, where: Path, execution: Execution = Execution()) -> tuple[Store, tuple[Fit, ...]]:  # noqa: B008
    store, plan = open_store(where), load_plan(study)
    run_pack(list(plan.fits), store_uri=store.uri, execution=execution, report=quiet)
    assert store.read_failures() == {}
    return store, plan.fits


def said_by(store: Store, fit: Fit) -> pl.DataFrame:
    table = pl.from_arrow(store.read_table(fit, "test.parquet"))
    assert isinstance(table, pl.DataFrame)
    return table


# --- generation ---------------------------------------------------------------------------------------------------


def test_what_is_written_is_what_scores(folder: Path, tmp_path: Path) -> None:
    """Written greedily, token by token, and judged in one pass over the truth: the same share is right."""
    study = study_of(folder, "writing.yaml", training=LEARNING, methods=["naive", "confidence"])
    store, fits = run(study, tmp_path / "store")
    truth = pl.from_arrow(store.read_truth(fits[0]))
    assert isinstance(truth, pl.DataFrame)
    for fit in fits:
        joined = said_by(store, fit).join(truth.filter(half="test"), on="id", how="inner", suffix="_right")
        right = (joined["completion"] == joined["completion_right"]).mean()
        curve = pl.from_arrow(store.read_table(fit, "curve.parquet"))
        assert isinstance(curve, pl.DataFrame)
        assert joined.height == 64 and right == pytest.approx(curve["test_accuracy"][-1])
        assert joined["probability"].is_between(0, 1).all()
    results = write_results(load_plan(study).cells, study="s", store=store, out=tmp_path / "out")
    assert results["metric"].unique().to_list() == ["exact_match"] and results["status"].unique().to_list() == ["done"]
    assert results["ceiling_score"].min() > 0.3, "it has learned to write"
    predictions = pl.read_parquet(tmp_path / "out/predictions.parquet")
    assert predictions["label"].is_null().all() and predictions["correct"].mean() > 0.1


def test_a_student_of_moves_learns_what_its_supervisor_wrote(folder: Path, tmp_path: Path) -> None:
    store, fits = run(study_of(folder, "writing.yaml", training=LEARNING), tmp_path / "store")
    student = next(fit for fit in fits if fit.labels)
    labels = store.read_table(student.labels[0], "labels.parquet")
    assert labels.num_rows == 96 and all(isinstance(text, str) for text in labels["completion"].to_pylist())
    curve = store.read_table(student, "curve.parquet")
    assert curve["train_accuracy"][-1].as_py() > 0.5, "against its own labels"


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "bert"])
def test_writing_does_not_depend_on_padding(kind: str, tmp_path: Path) -> None:
    save_model(tmp_path, kind)
    writer = built(tmp_path, setting="generation")
    prompts = [[5, 6, 7, 9], [8, 9], [0]]
    together = writer.greedy(*pad(prompts, pad_id=0, device=torch.device("cpu"), left=True), num_tokens=4, eos_id=4)
    for row, prompt in enumerate(prompts):
        alone = writer.greedy(*pad([prompt], pad_id=0, device=torch.device("cpu"), left=True), num_tokens=4, eos_id=4)
        assert torch.equal(together[0][row], alone[0][0])
        torch.testing.assert_close(together[1][row], alone[1][0], atol=1e-5, rtol=1e-5)
    with torch.no_grad():  # the definition: the likeliest next token under the plain model
        ids = torch.tensor([prompts[0]])
        for token in together[0][0]:
            assert int(writer.causal(input_ids=ids).logits[0, -1].argmax()) == int(token)
            ids = torch.cat((ids, token.view(1, 1)), dim=1)


def built(folder: Path, *, setting: Any, tune: str = "all", depth: int | None = None) -> Any:
    family = families.from_models([ModelEntry(name="m", path=str(folder), depth=depth)], base=folder)
    model, _ = models.build(
        families.model(family, "m"), setting=setting, tune=tune, execution=Execution(), bf16=False, seed=0
    )
    return model.eval()


@pytest.mark.parametrize("task", ["writing.yaml", "choosing.yaml"])
def test_execution_knobs_do_not_change_the_numbers(task: str, folder: Path, tmp_path: Path) -> None:
    study = study_of(
        folder, task, training={"epochs": 1, "batch_size": 20, "learning_rate": 0.01}, methods=["confidence"]
    )
    plain, fits = run(study, tmp_path / "plain")
    for name, execution in EXECUTIONS.items():
        other, _ = run(study, tmp_path / name, execution)
        for fit in fits:
            one, two = said_by(plain, fit), said_by(other, fit)
            np.testing.assert_allclose(two["probability"], one["probability"], atol=1e-4, err_msg=name)
            if "completion" in one.columns:
                assert one["completion"].to_list() == two["completion"].to_list()


TWO_WORKERS = """
import sys
import torch.distributed as dist
dist.init_process_group("gloo")
from w2s_ray.fit import Execution
from w2s_ray.plan import load_plan
from w2s_ray.training.pack import run_pack
for study, store in zip(sys.argv[1::2], sys.argv[2::2]):
    run_pack(list(load_plan(study).fits), store_uri=store, execution=Execution(workers=2, zero_stage=3), report=lambda e: None)
dist.destroy_process_group()
"""


def test_two_workers_give_the_numbers_of_one(folder: Path, tmp_path: Path) -> None:
    """Written moves, comparisons and probes, under ZeRO-3."""
    short = {"epochs": 1, "batch_size": 20, "learning_rate": 0.01}
    arguments, expected = [], []
    for name, task, training in (
        ("writing", "writing.yaml", short),
        ("choosing", "choosing.yaml", short),
        ("probe", "choosing.yaml", short | {"tune": "head"}),
    ):
        study = study_of(folder, task, training=training).rename(folder / f"two-{name}.yaml")
        expected.append(run(study, tmp_path / f"{name}-one"))
        arguments += [str(study), str(tmp_path / f"{name}-two")]
    script = tmp_path / "two.py"
    script.write_text(TWO_WORKERS)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    done = subprocess.run(
        [*command, str(script), *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for (one, fits), where in zip(expected, arguments[1::2], strict=True):
        two = open_store(where)
        assert two.read_failures() == {}
        for fit in fits:
            np.testing.assert_allclose(said_by(two, fit)["probability"], said_by(one, fit)["probability"], atol=1e-4)


# --- comparison ---------------------------------------------------------------------------------------------------


def test_the_order_of_two_completions_does_not_matter(tmp_path: Path) -> None:
    save_model(tmp_path, "llama")
    model = built(tmp_path, setting="comparison")
    torch.nn.init.normal_(model.head.weight)
    first, second = [[5, 6, 7], [8, 9]], [[5, 6], [8, 10, 11]]
    there = torch.softmax(model(*pad(first + second, pad_id=0, device=torch.device("cpu"))), -1)[:, 1]
    back = torch.softmax(model(*pad(second + first, pad_id=0, device=torch.device("cpu"))), -1)[:, 1]
    torch.testing.assert_close(there + back, torch.ones(2))
    rewards = model.head(model.features(*pad(first + second, pad_id=0, device=torch.device("cpu"))))[:, 0]
    torch.testing.assert_close(there, torch.sigmoid(rewards[:2] - rewards[2:]), atol=1e-6, rtol=1e-5)


def test_a_reward_model_learns_which_is_better(folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, "choosing.yaml", training=LEARNING)
    store, _ = run(study, tmp_path / "store")
    [row] = write_results(load_plan(study).cells, study="s", store=store, out=tmp_path / "out").to_dicts()
    assert row["metric"] == "pairwise_accuracy" and row["setting"] == "comparison"
    assert row["ceiling_score"] > 0.7


# --- probes and depth ---------------------------------------------------------------------------------------------


def test_features_are_read_once_and_again_where_they_are_damaged(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_kept", {})
    study = study_of(folder, "toy.yaml", training=LEARNING | {"tune": "head"}, seeds=2)
    store, fits = run(study, tmp_path / "store")
    kept = {path: path.read_bytes() for path in Path(store.storage.root, "features").iterdir()}
    assert len(kept) == 2, "one for each model, whatever the number of Fits"
    first = next(iter(kept))
    first.write_bytes(first.read_bytes()[:-10])
    features._kept.clear()
    extracted = []
    extract = features._extract_part
    monkeypatch.setattr(features, "_extract_part", lambda *a, **k: extracted.append(1) or extract(*a, **k))
    for fit in fits:
        Path(store.storage.path("fits", fit.folder, "done.json")).unlink()
    before = {fit.key: Path(store.storage.path("fits", fit.folder, "test.parquet")).read_bytes() for fit in fits}
    run(study, tmp_path / "store")
    assert len(extracted) == 3, "three parts of one model"
    assert {path: path.read_bytes() for path in kept} == kept
    for fit in fits:
        assert Path(store.storage.path("fits", fit.folder, "test.parquet")).read_bytes() == before[fit.key]


def test_a_probe_is_logistic_regression_on_the_features(folder: Path, tmp_path: Path) -> None:
    """The same score as L-BFGS on the same standardised features, within the noise of 64 items."""
    from scipy.optimize import minimize

    study = study_of(folder, "toy.yaml", training=LEARNING | {"tune": "head", "epochs": 60, "learning_rate": 0.05})
    store, fits = run(study, tmp_path / "store")
    fit = next(each for each in fits if each.role == "ceiling")
    from w2s_ray.training.data import prepare

    prepared = features.for_probe(fit, prepare(fit), store=store, execution=Execution())
    x = {name: np.array([row[0] for row in rows.sequences], np.float64) for name, rows in prepared.parts.items()}
    y = np.asarray(prepared.parts["B"].labels)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = x["B"] @ w[:-1] + w[-1]
        slope = (1 / (1 + np.exp(-z)) - y) / len(y)
        return float(np.mean(np.logaddexp(0, z) - y * z)), np.append(x["B"].T @ slope, slope.sum())

    w = minimize(loss, np.zeros(17), jac=True, method="L-BFGS-B").x
    expected = dict(zip(prepared.parts["test"].ids, x["test"] @ w[:-1] + w[-1] > 0, strict=True))
    found = said_by(store, fit)
    same = [expected[id_] == (p > 0.5) for id_, p in found.select("id", "probability").iter_rows()]
    assert np.mean(same) > 0.93


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_cut_to_its_first_layer(kind: str, tmp_path: Path) -> None:
    save_model(tmp_path, kind)
    whole, cut = built(tmp_path, setting="comparison"), built(tmp_path, setting="comparison", depth=1)
    ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long)
    if kind == "bert":
        states = whole.backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        torch.testing.assert_close(cut.features(ids, mask), states[1].mean(dim=1))
    assert not torch.allclose(cut.features(ids, mask), whole.features(ids, mask))
    layers = [name for name, _ in cut.named_parameters() if ".1." in name]
    assert not layers, "nothing of the second layer is left"
    family = families.from_models([ModelEntry(name="m", path=str(tmp_path), depth=1)], base=tmp_path)
    assert family.sizes[0].params < count_params(tmp_path)
    assert families.model(family, "m").identity["depth"] == 1
    with pytest.raises(InputError, match=r"depth: given 7, allowed are 0 to 2"):
        built(tmp_path, setting="comparison", depth=7)


# --- losses and tasks ---------------------------------------------------------------------------------------------


def test_the_loss_of_a_completion_by_hand() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], [[0.2, 0.2, 0.6], [0.9, 0.05, 0.05]]]))
    targets = torch.tensor([[0, 1], [-100, 1]])
    expected = -torch.log(torch.tensor([0.5 * 0.8, 0.05]))
    torch.testing.assert_close(naive.token_loss(logits, targets), expected)
    mixed = confidence.token_loss(0.1, max_weight=0.5, warmup_fraction=0.2, variant="paper")(logits, targets)
    own = -torch.log(torch.tensor([0.5 * 0.8, 0.9]))
    torch.testing.assert_close(mixed, 0.75 * expected + 0.25 * own)


def test_comparisons_are_shown_in_an_order_of_their_own(folder: Path) -> None:
    rows = tasks.read_rows(tasks.load_task("choosing.yaml", base=folder)).to_pylist()
    labels = [row["label"] for row in rows]
    assert 0.4 < np.mean(labels) < 0.6, "the better one stands first as often as second"
    parts = tasks.deal(
        tasks.read_rows(tasks.load_task("choosing.yaml", base=folder)), split_seed=0, num_train=60, num_test=40
    )
    assert [sum(part["label"].to_pylist()) for part in parts.values()] == [30, 30, 20]
    prompts = [set(part["text"].to_pylist()) for part in parts.values()]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"completions": []}, "generation takes 1 completions, given 0"),
        ({"label": "right"}, "generation takes no label"),
        ({"setting": "comparison"}, "comparison takes 2 completions, given 1"),
        ({"completions": ["{nothing}"]}, "no column 'nothing'"),
        ({"setting": "chess"}, "setting"),
    ],
)
def test_a_task_of_no_setting_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    import yaml

    task = yaml.safe_load((folder / "writing.yaml").read_text()) | changes
    (folder / "bad.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(InputError, match=message):
        tasks.check(tasks.load_task("bad.yaml", base=folder))


def test_what_cannot_write_is_refused_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"grids\[0\]\.tasks\[0\].*a probe can't learn"):
        load_plan(study_of(folder, "writing.yaml", training={"tune": "head"}))
    save_model(folder / "encoder", "bert")
    with pytest.raises(InputError, match="are encoders; use decoders"):
        load_plan(study_of(folder, "writing.yaml", models=[{"name": "e", "path": "encoder"}], pairs="all"))


def test_a_completion_that_its_tokenizer_loses_fails_with_its_name(folder: Path, tmp_path: Path) -> None:
    text = (folder / "writing.yaml").read_text().replace("'{right}'", "'{right} unheard'")
    (folder / "lost.yaml").write_text(text.replace("name: writing", "name: lost"))
    plan = load_plan(study_of(folder, "lost.yaml"))
    store = open_store(tmp_path / "store")
    run_pack([plan.fits[0]], store_uri=store.uri, execution=Execution(), report=quiet)
    [failure] = store.read_failures().values()
    assert "unheard' becomes" in failure["reason"] and "nothing could match it" in failure["reason"]
