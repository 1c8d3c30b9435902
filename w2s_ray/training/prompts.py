"""Methods that change what a model reads: `told` and `few_shot`.

The branch on these two methods is kept here, in the one place where a task's texts are rewritten.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from w2s_ray.fit import Fit
from w2s_ray.methods.transforms import told
from w2s_ray.store import Store
from w2s_ray.training.rows import PreparedTask, Rows, with_completion
from w2s_ray.training.settings import setting_of
from w2s_ray.training.training_set import TRANSFORM_SEED, read_labels


def apply_prompt_method(fit: Fit, task: PreparedTask, store: Store) -> PreparedTask:
    """The task as this Fit reads it: with the supervisor's label in each text, with shots before each test row, or as it is."""
    match fit.method.name:
        case "told":
            files = {"B": "labels.parquet", "test": "test.parquet"}
            parts = {part: _told(fit, task, part, store, file=file) for part, file in files.items()}
            return replace(task, parts=parts)
        case "few_shot":
            test, shots = task.parts["test"], _shots(fit, task, store)
            with_shots = _encoded_again(test, [shots + text for text in test.texts], fit, task)
            return replace(task, parts=task.parts | {"test": with_shots})
    return task


def _told(fit: Fit, task: PreparedTask, part: str, store: Store, *, file: str) -> Rows:
    rows = task.parts[part]
    labels = read_labels(fit.labels[0], rows, store, file=file).values > 0.5
    texts = [told.rewritten(text, label) for text, label in zip(rows.texts, labels, strict=True)]
    return _encoded_again(rows, texts, fit, task)


def _shots(fit: Fit, task: PreparedTask, store: Store) -> str:
    """Rows of half B with their labels, one a line."""
    rows, setting = task.parts["B"], setting_of(fit)
    values = read_labels(fit.labels[0], rows, store).values if fit.labels else setting.truth(rows)
    order = np.random.default_rng([fit.seed, TRANSFORM_SEED]).permutation(len(rows))
    shots = setting.choose_shots(rows, values, order, num_shots=int(dict(fit.method.params)["shots"]))
    return "".join(f"{with_completion(text, answer)}\n" for text, answer in shots)


def _encoded_again(rows: Rows, texts: list[str], fit: Fit, task: PreparedTask) -> Rows:
    sequences, answers = setting_of(fit).encode(task.tokenizer, texts, rows.completions)
    return replace(rows, texts=texts, sequences=sequences, labels=rows.labels if answers is None else answers)
