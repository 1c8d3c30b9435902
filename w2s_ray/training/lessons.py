"""What a Fit learns from: some rows, an answer and a weight for each. Here a task's rows, the supervisors' labels in the
store and the method's transform come together.

Promises: a label is joined to its row by id, and one that is missing is an error; what a transform draws by chance comes
from the Fit's seed; a row without weight is left out, so that batches are full of what counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from w2s_ray.fit import Fit
from w2s_ray.methods import labels as transforms
from w2s_ray.methods.labels import Labels
from w2s_ray.store import Store, StoreError
from w2s_ray.training import data
from w2s_ray.training.data import Answers, Prepared, Rows

BY_FEATURES = ("relabel", "sieve")
"""Transforms that look at the student's pretrained features."""
DRAW = 1_000_000
"""Beside a Fit's seed, the seed of what a transform draws; the orders of epochs have theirs below it."""


@dataclass(frozen=True)
class Lessons:
    rows: Rows
    answers: Answers
    weights: np.ndarray
    """[rows]: of each row in the loss."""
    verified: np.ndarray
    """[rows]: whether the answer is the truth, in a method that knows the truth of some rows."""
    held_out: Rows | None = None
    """Rows that are not learned from, with the Fit's own labels as theirs."""


def lessons(fit: Fit, prepared: Prepared, *, store: Store, features: Callable[[], Rows]) -> Lessons:
    """`features`: the rows of the Fit's half with features in the place of tokens, for the transforms that want them."""
    rows = data.part_of(prepared.parts[fit.half[0]], fit.half[1:])
    if fit.labels:
        members = [_said(each, rows, store=store) for each in fit.labels]
        found = _transformed(fit, members, rows, features=features)
        answers = _answers(found, rows, prepared)
        weights, verified = found.weight, found.verified
    else:
        answers, weights, verified = rows.labels, np.ones(len(rows)), np.zeros(len(rows), bool)
    apart = data.held_out(rows, fit.training.validation)
    kept = np.flatnonzero((weights > 0) & ~apart)
    if len(kept) < 2:
        raise StoreError(f"{fit.method.name} leaves {len(kept)} of {len(rows)} rows to learn from")
    return Lessons(
        rows=data.some(rows, kept),
        answers=data.some_answers(answers, kept),
        weights=weights[kept],
        verified=verified[kept],
        held_out=replace(data.some(rows, chosen), labels=data.some_answers(answers, chosen))
        if len(chosen := np.flatnonzero(apart))
        else None,
    )


def _said(supervisor: Fit, rows: Rows, *, store: Store, file: str = "labels.parquet") -> Labels:
    """What a supervisor says of some rows, by id."""
    table = store.read_table(supervisor, file)
    place = {id_: i for i, id_ in enumerate(table.column("id").to_pylist())}
    missing = [id_ for id_ in rows.ids if id_ not in place]
    if missing:
        raise StoreError(
            f"fits/{supervisor.folder}/{file} has {len(place)} labels and lacks {len(missing)} of the {len(rows)} rows, "
            f"such as {missing[0]}"
        )
    chosen = [place[id_] for id_ in rows.ids]
    probability = table.column("probability").to_numpy()[chosen]
    if supervisor.data.setting == "generation":
        written = table.column("completion").to_pylist()
        return transforms.from_completions([written[i] for i in chosen], probability)
    return transforms.from_probabilities(probability)


def _truth(rows: Rows) -> np.ndarray:
    """The truth in the form of labels: probabilities 0 and 1, or completions."""
    if isinstance(rows.labels, np.ndarray):
        return rows.labels
    return np.array([" ".join(each[0].split()) for each in rows.completions], dtype=object)


def _transformed(fit: Fit, members: list[Labels], rows: Rows, *, features: Callable[[], Rows]) -> Labels:
    said, params = members[0], {name: value for name, value in fit.method.params if name != "loss"}
    generator = np.random.default_rng([fit.seed, DRAW])
    match fit.method.name:
        case "ensemble":
            return transforms.ensemble(members, how=params["how"])
        case "filter":
            return transforms.surest(said, **params)
        case "reliability":
            return transforms.weighed(said)
        case "relabel":
            return transforms.relabelled(said, _flat(features(), rows), **params)
        case "sieve":
            return transforms.sieved(said, _flat(features(), rows), **params)
        case "combined":
            return transforms.combined(said, _truth(rows), generator=generator, **params)
        case "noise":
            return _noise(said, rows, errors=params["errors"], generator=generator)
        case "shuffled":
            return transforms.shuffled(said, generator=generator)
    return said


def _flat(features: Rows, rows: Rows) -> np.ndarray:
    """[row, width]: a text's features, or what the first of two has more than the second."""
    place = {id_: i for i, id_ in enumerate(features.ids)}
    read = [features.sequences[place[id_]] for id_ in rows.ids]
    return np.array([each[0] if len(each) == 1 else each[0] - each[1] for each in read], dtype=np.float64)


def _noise(said: Labels, rows: Rows, *, errors: str, generator: np.random.Generator) -> Labels:
    truth = _truth(rows)
    wrong = said.said != truth if truth.dtype == object else (said.said > 0.5) != (truth > 0.5)
    lengths = np.array(
        [len(text) + sum(map(len, each)) for text, each in zip(rows.texts, rows.completions, strict=True)]
    )
    first = {"random": np.zeros(len(rows)), "longest": -lengths, "shortest": lengths}[errors]
    return transforms.noisy(truth, num_errors=int(wrong.sum()), first=first, generator=generator)


def _answers(labels: Labels, rows: Rows, prepared: Prepared) -> Answers:
    if labels.said.dtype != object:
        return labels.said.astype(np.float32)
    prompts = [sequence[0] for sequence in rows.sequences]
    return data.answer_tokens(prepared.tokenizer, rows.texts, prompts, list(labels.said))


# --- texts that hold labels ---------------------------------------------------------------------------------------


def reworded(fit: Fit, prepared: Prepared, *, store: Store) -> Prepared:
    """The task as this Fit reads it: with the supervisor's label in each text (told), with examples before each test row
    (few_shot), or as it is."""
    if fit.method.name == "told":
        parts = {"B": "labels.parquet", "test": "test.parquet"}
        return replace(
            prepared,
            parts={name: _told(fit, prepared, name, file=file, store=store) for name, file in parts.items()},
        )
    if fit.method.name == "few_shot":
        test, before = prepared.parts["test"], _shots(fit, prepared, store=store)
        return replace(
            prepared, parts=prepared.parts | {"test": _read_as(test, [before + t for t in test.texts], fit, prepared)}
        )
    return prepared


def _told(fit: Fit, prepared: Prepared, part: str, *, file: str, store: Store) -> Rows:
    """Burns et al. 2023, appendix E: with the label at the end of the prompt, a student can do nothing but imitate."""
    rows = prepared.parts[part]
    said = _said(fit.labels[0], rows, store=store, file=file).said > 0.5
    texts = [
        f"{text} What do you think? I think this is {int(one)}" for text, one in zip(rows.texts, said, strict=True)
    ]
    return _read_as(rows, texts, fit, prepared)


def _shots(fit: Fit, prepared: Prepared, *, store: Store) -> str:
    """Rows of half B with their labels, one a line."""
    rows, num_shots = prepared.parts["B"], int(dict(fit.method.params)["shots"])
    said = _said(fit.labels[0], rows, store=store).said if fit.labels else _truth(rows)
    order = np.random.default_rng([fit.seed, DRAW]).permutation(len(rows))
    if fit.data.setting == "classification":  # as many of one class as of the other, by turns
        by_class = [[i for i in order if (said[i] > 0.5) == bool(each)] for each in (0, 1)]
        order = np.array([i for pair in zip(*by_class, strict=False) for i in pair], dtype=int)

    def answer(row: int) -> str:
        if fit.data.setting == "classification":
            return str(int(said[row] > 0.5))
        return str(said[row]) if said.dtype == object else rows.completions[row][0 if said[row] > 0.5 else 1]

    return "".join(f"{data.joined_text(rows.texts[row], answer(row))}\n" for row in order[:num_shots])


def _read_as(rows: Rows, texts: list[str], fit: Fit, prepared: Prepared) -> Rows:
    sequences, answers = data.encode(prepared.tokenizer, texts, rows.completions, setting=fit.data.setting)
    labels: Any = answers if fit.data.setting == "generation" else rows.labels
    return replace(rows, texts=texts, sequences=sequences, labels=labels)


def writing(prepared: Prepared, rows: Rows) -> Lessons:
    """The task's texts as something to write, token by token, without any label."""
    both = zip(rows.texts, rows.completions, strict=True)
    compared = [data.joined_text(text, each) for text, shown in both if len(shown) == 2 for each in shown]
    end = prepared.tokenizer.eos_token_id  # a right completion would be a label, so of those the prompts alone
    read = [tokens for tokens in prepared.tokenizer(compared or rows.texts)["input_ids"] if len(tokens) > 1]
    numbers = [str(i) for i in range(len(read))]
    told = Rows(
        ids=numbers,
        texts=[""] * len(read),
        completions=[()] * len(read),
        groups=numbers,
        sequences=[(tokens[:1],) for tokens in read],
        labels=[[*tokens[1:], *([end] if end is not None and tokens[-1] != end else [])] for tokens in read],
    )
    return Lessons(told, told.labels, np.ones(len(read)), np.zeros(len(read), bool))
