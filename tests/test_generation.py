"""Generation: what is written is what scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from w2s_ray import tasks
from w2s_ray.errors import InputError
from w2s_ray.planning import load_plan
from w2s_ray.results import write_results
from w2s_ray.training.batches import pad
from w2s_ray.training.distributed import device
from w2s_ray.training.settings import generation

from tiny import CONFIGS, save_model
from trained import LEARNING, predictions_of, spec_of, study_of, train_study


def test_what_is_written_is_what_scores(folder: Path, tmp_path: Path) -> None:
    """Written greedily, token by token, and judged in one pass over the truth: the same share is right."""
    study = study_of(folder, "writing.yaml", training=LEARNING, methods=["naive", "confidence"])
    store, fits = train_study(study, tmp_path / "store")
    truth = pl.from_arrow(store.read_truth(fits[0]))
    assert isinstance(truth, pl.DataFrame)
    for fit in fits:
        joined = predictions_of(store, fit).join(truth.filter(half="test"), on="id", how="inner", suffix="_right")
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
    store, fits = train_study(study_of(folder, "writing.yaml", training=LEARNING), tmp_path / "store")
    student = next(fit for fit in fits if fit.labels)
    labels = store.read_table(student.labels[0], "labels.parquet")
    assert labels.num_rows == 96 and all(isinstance(text, str) for text in labels["completion"].to_pylist())
    curve = store.read_table(student, "curve.parquet")
    assert curve["train_accuracy"][-1].as_py() > 0.5, "against its own labels"


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "bert"])
def test_writing_does_not_depend_on_padding(kind: str, tmp_path: Path) -> None:
    save_model(tmp_path, kind)
    writer = generation.build_model(spec_of(tmp_path))[0].eval().to(device())
    prompts = [[5, 6, 7, 9], [8, 9], [0]]
    together = writer.greedy(*pad(prompts, pad_id=0, left=True), num_tokens=4, eos_id=4)
    for row, prompt in enumerate(prompts):
        alone = writer.greedy(*pad([prompt], pad_id=0, left=True), num_tokens=4, eos_id=4)
        assert torch.equal(together[0][row], alone[0][0])
        torch.testing.assert_close(together[1][row], alone[1][0], atol=1e-5, rtol=1e-5)
    with torch.no_grad():  # the definition: the likeliest next token under the plain model
        ids = torch.tensor([prompts[0]], device=device())
        for token in together[0][0]:
            assert int(writer.causal(input_ids=ids).logits[0, -1].argmax()) == int(token)
            ids = torch.cat((ids, token.view(1, 1)), dim=1)


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
    task = yaml.safe_load((folder / "writing.yaml").read_text()) | changes
    (folder / "bad.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(InputError, match=message):
        tasks.check(tasks.load_task("bad.yaml", base=folder))
