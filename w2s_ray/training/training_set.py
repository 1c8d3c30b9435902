"""What a Fit learns from: rows with a target and a weight each.

Here a task's rows, the supervisors' labels in the store and the method's transform come together. Promises: a label is joined to
its row by id, and a missing one is an error; random choices of a transform are seeded by the Fit; rows of weight 0 are left
out, so that batches are full of rows that count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_ray import methods
from w2s_ray.fit import Fit
from w2s_ray.methods.labels import Labels, LabelSources, from_completions, from_probabilities
from w2s_ray.store import Store, StoreError
from w2s_ray.training.rows import PreparedTask, Rows, object_array, with_completion
from w2s_ray.training.settings import setting_of

TRANSFORM_SEED = 1_000_000
"""Seeds a transform together with the Fit's seed. Epochs use smaller numbers."""


@dataclass(frozen=True)
class TrainingSet:
    rows: Rows
    """`labels` are the targets."""
    weights: np.ndarray
    """[rows]: weight of each row in the loss."""
    verified: np.ndarray
    """[rows]: whether the target is known to be the truth, in a method that knows it for some rows."""
    held_out: Rows | None = None
    """Rows for validation, with the Fit's own labels as their labels."""
    label_score: float | None = None
    """Share of right labels among the rows that are learned, if the labels come from other Fits."""
    ensemble_score: float | None = None
    """Share of the test rows that several supervisors together label right, if there are several."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: np.ndarray) -> TrainingSet:
        """Rows by number, in the order given."""
        return TrainingSet(self.rows.take(chosen), self.weights[chosen], self.verified[chosen])


def build_training_set(fit: Fit, task: PreparedTask, features: PreparedTask | None, store: Store) -> TrainingSet:
    """What this Fit learns from. `features`: the same task with features in place of tokens, if the method needs them."""
    if fit.role == "start":
        return _texts_to_write(task, task.parts[fit.part.half])
    rows = task.parts[fit.part.half].part(fit.part).last_share(methods.budget(fit.method).rows)
    weights, verified, are_right = np.ones(len(rows)), np.zeros(len(rows), bool), None
    if fit.labels or fit.role == "control":
        labels = methods.transform_labels(fit.method, _label_sources(fit, rows, features, store))
        are_right = labels.are_right(setting_of(fit).truth(rows))
        rows = replace(rows, labels=setting_of(fit).as_targets(labels, rows, task.tokenizer))
        weights, verified = labels.weight, labels.verified
    is_held_out = rows.is_held_out(fit.training.validation)
    learned, held_out = np.flatnonzero((weights > 0) & ~is_held_out), np.flatnonzero(is_held_out)
    if len(learned) < 2:
        raise StoreError(f"method '{fit.method.name}' leaves {len(learned)} of {len(rows)} rows to learn from")
    return TrainingSet(
        rows=rows.take(learned),
        weights=weights[learned],
        verified=verified[learned],
        held_out=rows.take(held_out) if len(held_out) else None,
        label_score=None if are_right is None else float(are_right[learned].mean()),
        ensemble_score=_ensemble_score(fit, task, store) if len(fit.labels) > 1 else None,
    )


def _ensemble_score(fit: Fit, task: PreparedTask, store: Store) -> float:
    """Share of the test rows that the supervisors together label right."""
    rows = task.parts["test"]
    sources = _label_sources(fit, rows, None, store, file="test.parquet")
    return float(methods.transform_labels(fit.method, sources).are_right(sources.truth).mean())


def _label_sources(
    fit: Fit, rows: Rows, features: PreparedTask | None, store: Store, *, file: str = "labels.parquet"
) -> LabelSources:
    def feature_matrix() -> np.ndarray:
        assert features is not None, f"method {fit.method.name} needs features"
        matrix: np.ndarray = setting_of(fit).feature_matrix(features.parts[fit.part.half].in_order_of(rows.ids))
        return matrix

    pairs = zip(rows.texts, rows.completions, strict=True)
    return LabelSources(
        supervisors=tuple(read_labels(labeller, rows, store, file=file) for labeller in fit.labels)
        or (_truth_as_labels(fit, rows),),
        truth=setting_of(fit).truth(rows),
        num_characters=np.array([len(text) + sum(map(len, completions)) for text, completions in pairs]),
        generator=np.random.default_rng([fit.seed, TRANSFORM_SEED]),
        features=feature_matrix,
    )


def _truth_as_labels(fit: Fit, rows: Rows) -> Labels:
    truth = setting_of(fit).truth(rows)
    if setting_of(fit).TARGETS_ARE_TOKENS:
        return from_completions(list(truth), np.ones(len(rows)))
    return from_probabilities(truth)


def read_labels(labeller: Fit, rows: Rows, store: Store, *, file: str = "labels.parquet") -> Labels:
    """A Fit's predictions of some rows, by id."""
    table = store.read_table(labeller, file)
    place = {id_: i for i, id_ in enumerate(table.column("id").to_pylist())}
    if missing := [id_ for id_ in rows.ids if id_ not in place]:
        raise StoreError(
            f"fits/{labeller.folder}/{file} has {len(place)} labels and lacks {len(missing)} of the {len(rows)} rows, "
            f"such as {missing[0]}"
        )
    labels: Labels = setting_of(labeller).as_labels(table, [place[id_] for id_ in rows.ids])
    return labels


def _texts_to_write(task: PreparedTask, rows: Rows) -> TrainingSet:
    """For a generative warm start: the task's texts as something to write, token by token, without any label.

    Of comparisons both completions are written. A generation's completions are its labels, so only its prompts are.
    """
    pairs = zip(rows.texts, rows.completions, strict=True)
    compared = [
        with_completion(text, shown) for text, completions in pairs if len(completions) == 2 for shown in completions
    ]
    end = task.tokenizer.eos_token_id
    token_lists = [tokens for tokens in task.tokenizer(compared or rows.texts)["input_ids"] if len(tokens) > 1]
    targets = [[*tokens[1:], *([end] if end is not None and tokens[-1] != end else [])] for tokens in token_lists]
    numbers = [str(i) for i in range(len(token_lists))]
    texts = Rows(
        ids=numbers,
        texts=[""] * len(numbers),
        completions=[()] * len(numbers),
        groups=numbers,
        sequences=[(tokens[:1],) for tokens in token_lists],
        labels=object_array(targets),
    )
    return TrainingSet(texts, np.ones(len(texts)), np.zeros(len(texts), bool))
