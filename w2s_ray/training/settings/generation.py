"""Generation: a prompt and its right completion. A language-model head, loss on the completion's tokens, exact match.

Rows are padded on the left, so the completions of a batch end at the same position. Weak labels are hard: the completion that a
supervisor writes greedily, with the probability that it gives to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from w2s_ray.errors import InputError
from w2s_ray.fit import Fit
from w2s_ray.methods.cross_entropy import token_cross_entropy
from w2s_ray.methods.labels import Labels, from_completions
from w2s_ray.methods.untrained import BETWEEN_SHOTS
from w2s_ray.training.batches import evaluate_in_batches, pad
from w2s_ray.training.distributed import device
from w2s_ray.training.engine import Engine
from w2s_ray.training.model import ModelSpec, backbone_inputs, load_base, trainable_copy
from w2s_ray.training.rows import PreparedTask, Rows, object_array, with_completion

TARGETS_ARE_TOKENS = True
NOT_A_TARGET = -100
"""Marks positions that the loss passes over."""
plain_loss = token_cross_entropy


# --- model --------------------------------------------------------------------------------------------------------


class Writer(nn.Module):
    """A language model that is asked for its last few positions."""

    def __init__(self, causal: nn.Module, *, bf16: bool) -> None:
        super().__init__()
        self.causal = causal
        self.bf16 = bf16
        if bf16:
            _keep_in_fp32(causal.get_output_embeddings())  # type: ignore[operator]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, num_last: int) -> torch.Tensor:
        """Logits [rows, num_last, vocabulary] for the last `num_last` tokens, each from those before it."""
        return self._run(input_ids, attention_mask, num_last=num_last + 1).logits[:, -num_last - 1 : -1]

    def _run(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *, num_last: int, **more: Any) -> Any:
        """The model's output for ids that end where the mask ends, with the logits of the last `num_last` positions at least."""
        with torch.autocast(input_ids.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            inputs = backbone_inputs(self.causal, input_ids, attention_mask) | more
            if self.causal.takes_logits_to_keep:
                inputs["logits_to_keep"] = num_last
            return self.causal(**inputs)

    def greedy(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *, num_tokens: int, eos_id: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, log-probability up to the first end) of greedy decoding.

        Keys and values of what was read are kept, where the model can keep them, so that each step reads one token. Always takes
        `num_tokens` steps, so that all ranks take as many.
        """
        written: list[torch.Tensor] = []
        log_probability = torch.zeros(len(input_ids), device=input_ids.device)
        has_ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        unread, mask, cache = input_ids, attention_mask, {"use_cache": True} if self.causal.takes_past else {}
        for _ in range(num_tokens):
            output = self._run(unread, mask, num_last=1, **cache)
            token_log_probability, token = torch.log_softmax(output.logits[:, -1], dim=-1).max(dim=-1)
            written.append(token)
            log_probability += torch.where(has_ended, 0.0, token_log_probability)
            has_ended |= token == eos_id
            mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
            if cache:
                unread, cache = token[:, None], cache | {"past_key_values": output.past_key_values}
            else:
                unread = torch.cat((unread, token[:, None]), dim=1)
        return torch.stack(written, dim=1), log_probability


def _keep_in_fp32(head: nn.Module) -> None:
    """Let a head compute in fp32 on fp32 inputs, whatever autocast surrounds it.

    In bf16 neighbouring logits round to the same number, and greedy decoding then picks among ties.
    """
    forward = head.forward

    def forward_in_fp32(hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            logits: torch.Tensor = forward(hidden.float())
        return logits

    head.forward = forward_in_fp32


def build_model(spec: ModelSpec) -> tuple[nn.Module, str]:
    """The pretrained language model with its own head."""
    base = load_base(spec)
    if base.causal is None:
        raise InputError(f"model {spec.model.name} cannot generate, since it is an encoder; use a decoder")
    if spec.tune == "head":
        raise InputError("training.tune: head is a linear probe, which reads features and writes nothing; use all")
    return Writer(trainable_copy(base.causal, spec), bf16=spec.bf16), "its language-model head"


# --- rows ---------------------------------------------------------------------------------------------------------


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], completions: list[tuple[str, ...]]
) -> tuple[list[tuple[list[int], ...]], np.ndarray | None]:
    """(prompt of each row, tokens of its right completion)."""
    token_lists = tokenizer(texts, return_attention_mask=False)["input_ids"] if texts else []
    prompts = [tokens[:-1] if tokens and tokens[-1] == tokenizer.eos_token_id else tokens for tokens in token_lists]
    answers = _completion_tokens(tokenizer, texts, prompts, [shown[0] for shown in completions])
    return [(prompt,) for prompt in prompts], answers


def _completion_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], prompts: Sequence[list[int]], completions: Sequence[str]
) -> np.ndarray:
    """Tokens of completions as they follow their prompts, each with the end-of-sequence token."""
    end = tokenizer.eos_token_id
    if end is None:
        raise InputError(
            "the tokenizer has no end-of-sequence token, which generation needs to know where a completion ends"
        )
    joined = [with_completion(text, completion) for text, completion in zip(texts, completions, strict=True)]
    whole = tokenizer(joined, add_special_tokens=True)["input_ids"] if joined else []
    answers = []
    for prompt, tokens, completion in zip(prompts, whole, completions, strict=True):
        if tokens[: len(prompt)] == prompt:
            answer = tokens[len(prompt) :]
        else:  # the tokenizer merges over the seam
            answer = tokenizer(f" {completion}", add_special_tokens=False)["input_ids"]
        answers.append([*(answer[:-1] if answer and answer[-1] == end else answer), end])
    return object_array(answers)


def _text_of(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], *, end: str | None = None) -> str:
    """The text of a completion up to its end, with single blanks. `end`: a text that ends it, too."""
    ids = list(tokens)
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    return _single_blanks(text.partition(end)[0] if end else text)


def _single_blanks(text: str) -> str:
    return " ".join(text.split())


def check_answers(
    tokenizer: PreTrainedTokenizerBase, table: pa.Table, answers: np.ndarray | None, *, task: str
) -> None:
    """Refuse completions that the tokenizer changes: no model could match them, and all would count as mistakes."""
    assert answers is not None
    for row, (completions, answer) in enumerate(zip(table["completions"].to_pylist(), answers, strict=True)):
        if _text_of(tokenizer, answer) != _single_blanks(completions[0]):
            raise InputError(
                f"{task}: row with id {table['id'][row]}: the completion {completions[0]!r} becomes "
                f"{_text_of(tokenizer, answer)!r} through the tokenizer {tokenizer.name_or_path}, so no model could match it"
            )


def truth_column(table: pa.Table) -> tuple[str, Any]:
    return "completion", pa.array([shown[0] for shown in table["completions"].to_pylist()], pa.string())


def collate(rows: Rows, chosen: Sequence[int], *, pad_id: int) -> tuple[tuple[Any, ...], torch.Tensor]:
    """(model inputs, target tokens [rows, longest completion]) of rows by number."""
    answers = [rows.labels[i] for i in chosen]
    num_last = max(map(len, answers))
    whole = [[*rows.sequences[i][0], *answer] for i, answer in zip(chosen, answers, strict=True)]
    targets = torch.full((len(answers), num_last), NOT_A_TARGET, dtype=torch.long)
    for row, answer in enumerate(answers):
        targets[row, num_last - len(answer) :] = torch.tensor(answer, dtype=torch.long)
    return (*pad(whole, pad_id=pad_id, left=True), num_last), targets.to(device())


def question(text: str) -> str:
    """A prompt as an untrained model is asked about it."""
    return text


def feature_matrix(rows: Rows) -> np.ndarray:
    raise InputError("features are compared between two classes, not between written texts")


# --- labels -------------------------------------------------------------------------------------------------------


def truth(rows: Rows) -> np.ndarray:
    """[rows]: the right completions, in the form of `Labels.values`."""
    return object_array([_single_blanks(shown[0]) for shown in rows.completions])


def as_labels(predictions: pa.Table, chosen: list[int]) -> Labels:
    """The completions that a Fit wrote for rows by number, as labels for another."""
    completions = predictions.column("completion").to_pylist()
    return from_completions([completions[i] for i in chosen], predictions.column("probability").to_numpy()[chosen])


def as_targets(labels: Labels, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Labels in the form of `Rows.labels`."""
    return _completion_tokens(tokenizer, rows.texts, [row[0] for row in rows.sequences], list(labels.values))


def choose_shots(rows: Rows, values: np.ndarray, order: np.ndarray, *, num_shots: int) -> list[tuple[str, str]]:
    """(prompt, completion) of labelled rows for a prompt."""
    return [(rows.texts[i], str(values[i])) for i in order[:num_shots]]


# --- predictions --------------------------------------------------------------------------------------------------


def hits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[rows]: whether each token of the completion is the likeliest."""
    return ((logits.argmax(-1) == targets) | (targets == NOT_A_TARGET)).all(dim=1)


def predict(engine: Engine, rows: Rows, task: PreparedTask, fit: Fit) -> dict[str, pa.Array]:
    """Columns of predictions: what the model writes greedily, and how probable it finds that."""

    def compute(chosen: list[int]) -> torch.Tensor:
        prompts = pad([rows.sequences[i][0] for i in chosen], pad_id=task.pad_id, left=True)
        written, log_probability = engine.module.greedy(
            *prompts, num_tokens=task.num_answer_tokens, eos_id=task.tokenizer.eos_token_id
        )
        return torch.cat((log_probability.double().exp()[:, None], written.double()), dim=1)

    values = evaluate_in_batches(engine, rows, compute, width=1 + task.num_answer_tokens, dtype=torch.float64)
    end = BETWEEN_SHOTS if fit.method.name == "few_shot" else None  # a model that imitates the shots goes on to another
    texts = [_text_of(task.tokenizer, tokens, end=end) for tokens in values[:, 1:].astype(np.int64).tolist()]
    return {
        "completion": pa.array(texts, pa.string()),
        "probability": pa.array(values[:, 0].astype(np.float32), pa.float32()),
    }


def judge(engine: Engine, rows: Rows, task: PreparedTask) -> np.ndarray:
    """[row, (log-likelihood of the right completion, whether each of its tokens is the likeliest)].

    The second is exact match under greedy decoding, at the price of one forward pass.
    """

    def compute(chosen: list[int]) -> torch.Tensor:
        inputs, targets = collate(rows, chosen, pad_id=task.pad_id)
        logits = engine(*inputs)
        return torch.stack((-token_cross_entropy(logits, targets), hits(logits, targets).to(logits.dtype)), dim=1)

    return evaluate_in_batches(engine, rows, compute, width=2, dtype=torch.float32).astype(np.float64)


def score(engine: Engine, rows: Rows, task: PreparedTask, predicted: pa.Table | None = None) -> tuple[float, float]:
    """(loss, exact match) against the rows' completions. What was predicted does not tell how likely those are."""
    log_likelihood, is_right = judge(engine, rows, task).T
    return float(-log_likelihood.mean()), float(is_right.mean())
