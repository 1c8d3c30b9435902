"""One file a setting, each with the same functions: how its rows are read, what its model looks like, how it is scored.

    TARGETS_ARE_TOKENS                      whether labels are completions rather than probabilities of class 1
    build_model(spec)                       the model with its head
    encode(tokenizer, texts, completions)   rows as token ids
    check_answers(...), truth_column(...)   what is checked about the truth, and how it is kept for scoring
    collate(rows, chosen)                   a batch: model inputs and targets
    question(text)                          a text as an untrained model is asked about it
    feature_matrix(rows)                    one vector a row, of rows that are features
    truth(rows), as_labels(...), as_targets(...), choose_shots(...)
                                            truth and predictions as labels, labels as targets or as shots in a prompt
    plain_loss(logits, targets), hits(...)  loss and hit of each row of a batch
    predict(...), score(...)                predictions to keep; loss and accuracy on labelled rows

To add a setting, write its file and add it to the table below, to `fit.Setting`, and to `tasks` (how its rows are written).
"""

from __future__ import annotations

from types import ModuleType

from w2s_ray.fit import Fit, Setting
from w2s_ray.training.settings import classification, comparison, generation

SETTINGS: dict[Setting, ModuleType] = {
    "classification": classification,
    "generation": generation,
    "comparison": comparison,
}


def setting_of(fit: Fit) -> ModuleType:
    """The setting of the Fit's task: how its rows are read, labelled and scored."""
    return SETTINGS[fit.data.setting]


def model_setting_of(fit: Fit) -> ModuleType:
    """The setting whose head and loss this Fit uses.

    Generative warm starts and untrained models run as language models.
    """
    if fit.role in ("start", "untrained"):
        return generation
    return setting_of(fit)
