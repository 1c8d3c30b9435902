"""Methods that change what a model reads: `told`, `zero_shot` and `few_shot`.

The branch on these methods is kept here, in the one place where a task's texts are rewritten.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from w2s_ray import methods
from w2s_ray.fit import Fit
from w2s_ray.methods.transforms import told
from w2s_ray.methods.untrained import BETWEEN_SHOTS, CONTENT_FREE
from w2s_ray.store import Store, StoreError
from w2s_ray.training.rows import PreparedTask, Rows, with_completion
from w2s_ray.training.settings import classification, setting_of
from w2s_ray.training.training_set import TRANSFORM_SEED, read_labels


def apply_prompt_method(fit: Fit, task: PreparedTask, store: Store) -> PreparedTask:
    """The task as this Fit reads it: with the supervisor's label in each text, with shots before each test row, or as it is."""
    match fit.method.name:
        case "told":
            files = {"B": "labels.parquet", "test": "test.parquet"}
            parts = {part: _told(fit, task, part, store, file=file) for part, file in files.items()}
            return replace(task, parts=parts)
        case "zero_shot" | "few_shot":
            return _asked(fit, task, shots=_shots(fit, task, store) if fit.method.name == "few_shot" else "")
    return task


def _told(fit: Fit, task: PreparedTask, part: str, store: Store, *, file: str) -> Rows:
    rows = task.parts[part]
    labels = read_labels(fit.labels[0], rows, store, file=file).values > 0.5
    texts = [told.rewritten(text, label) for text, label in zip(rows.texts, labels, strict=True)]
    return _encoded_again(rows, texts, fit, task)


def _asked(fit: Fit, task: PreparedTask, *, shots: str) -> PreparedTask:
    """The task with its test rows as an untrained model is asked about them."""
    test, question = task.parts["test"], setting_of(fit).question
    texts = [shots + question(text) for text in test.texts]
    if fit.data.setting != "classification":  # prompts that completions follow as they are
        return replace(task, parts=task.parts | {"test": _encoded_again(test, texts, fit, task)})
    sequences, answer_ids = classification.encode_questions(task.tokenizer, texts)
    parts = task.parts | {"test": replace(test, texts=texts, sequences=sequences)}
    if methods.untrained_params(fit.method).calibrate:
        parts["content_free"] = _content_free([shots + question(text) for text in CONTENT_FREE], task)
    return replace(task, parts=parts, answer_ids=answer_ids)


def _content_free(texts: list[str], task: PreparedTask) -> Rows:
    """Rows that say nothing, without labels, for contextual calibration."""
    sequences, _ = classification.encode_questions(task.tokenizer, texts)
    numbers = [str(i) for i in range(len(texts))]
    return Rows(numbers, texts, [()] * len(texts), numbers, sequences, np.zeros(len(texts), np.float32))


def _shots(fit: Fit, task: PreparedTask, store: Store) -> str:
    """Labelled rows of half B, in the form in which the test rows are asked, each with its answer."""
    rows, setting, num_shots = task.parts["B"], setting_of(fit), int(dict(fit.method.params)["shots"])
    values = read_labels(fit.labels[0], rows, store).values if fit.labels else setting.truth(rows)
    generator = np.random.default_rng([fit.seed, TRANSFORM_SEED])
    shots = setting.choose_shots(rows, values, generator.permutation(len(rows)), num_shots=num_shots)
    if len(shots) < num_shots:
        raise StoreError(
            f"method 'few_shot' asks for {num_shots} shots, but half B has {len(shots)} rows; lower 'shots'"
        )
    in_order = [shots[i] for i in generator.permutation(len(shots))]  # so that no class always comes last
    return "".join(f"{with_completion(setting.question(text), answer)}{BETWEEN_SHOTS}" for text, answer in in_order)


def _encoded_again(rows: Rows, texts: list[str], fit: Fit, task: PreparedTask) -> Rows:
    sequences, answers = setting_of(fit).encode(task.tokenizer, texts, rows.completions)
    return replace(rows, texts=texts, sequences=sequences, labels=rows.labels if answers is None else answers)
