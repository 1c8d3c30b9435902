"""Makes the English family and its tasks: `python -m w2s_ray.recipes.english_ladder FOLDER [OUT] [--sizes m xs s l]`.

FOLDER holds the manuals of six programs (`python -m w2s_ray.recipes.english_text --help` says how to get them). Four language
models are pretrained on them, but for some pages of two databases, PostgreSQL and SQLite. The tasks ask of sentences on those
pages which manual they are from: of one sentence (manuals), or of two (manuals-pairs). Size tells: which words and turns
of phrase belong to a manual is what a larger model knows more of.

A sentence stands between two `<s>`, in pretraining as in a task: a classifier reads the one after the sentence.

Promises: no page, and so no sentence, is both in pretraining and in a task; the result is deterministic on one kind of machine;
an interrupted run continues from its last checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from w2s_ray.recipes import checkpoint
from w2s_ray.recipes.english_text import Page, read_pages
from w2s_ray.tasks.near_duplicates import near_duplicates

SEED = 20231214
NUM_TOKENS = 4096
PAD, START = "<pad>", "<s>"
WINDOW_TOKENS = 128
WINDOWS_PER_STEP = 16
WARMUP_STEPS = 100
CHECKPOINT_EVERY_STEPS = 200
LOSS_CHUNK_TOKENS = 256
NUM_VALIDATION_WINDOWS = 200


@dataclass(frozen=True)
class Size:
    width: int
    num_layers: int
    peak_rate: float
    epochs: int


SIZES = {
    "xs": Size(32, 2, 6e-3, 3),
    "s": Size(64, 3, 4e-3, 3),
    "m": Size(128, 4, 2.5e-3, 3),
    "l": Size(224, 5, 1.5e-3, 3),
}


TASK_MANUALS = ("postgresql", "sqlite")
"""Of label 1 and of label 0."""
MAX_PAIRS_PER_PAGE = 60
GIVEAWAYS = re.compile(r"\b(postgres\w*|pg_\w*|psql|sqlite\w*)\b", re.IGNORECASE)
"""A sentence that names its database is in no task."""


# --- tokens -------------------------------------------------------------------------------------------------------


def new_tokenizer(pages: list[Page]) -> PreTrainedTokenizerFast:
    """A byte-level BPE, trained on the pages."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS,
        special_tokens=[PAD, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for page in pages for text in page.sentences), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {START}", special_tokens=[(START, tokenizer.token_to_id(START))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=START)


def windows(pages: list[Page], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """[window, token]: all sentences in the order of the pages, each after a start token. A window begins with the last token
    of the one before, so that every token is a target once."""
    texts = [text for page in pages for text in page.sentences]
    ids = tokenizer(texts)["input_ids"]
    stream = np.array([token for sentence in ids for token in sentence[:-1]], dtype=np.int16)
    starts = np.arange(0, len(stream) - WINDOW_TOKENS - 1, WINDOW_TOKENS)
    return stream[starts[:, None] + np.arange(WINDOW_TOKENS + 1)]


# --- pretraining --------------------------------------------------------------------------------------------------


def new_model(size: Size, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=8 * size.width // 3,
        num_hidden_layers=size.num_layers,
        num_attention_heads=max(2, size.width // 32),
        max_position_embeddings=WINDOW_TOKENS,
        tie_word_embeddings=True,
        initializer_range=0.5 * size.width**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class _NextTokenLoss(torch.autograd.Function):
    """Mean cross-entropy of a tied softmax. The gradients are made on the way forward, a chunk that fits the cache at a time."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, embeddings: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        of_hidden, of_embeddings = torch.empty_like(hidden), torch.zeros_like(embeddings)
        loss = torch.zeros(())
        for start in range(0, len(hidden), LOSS_CHUNK_TOKENS):
            chunk = slice(start, start + LOSS_CHUNK_TOKENS)
            logits = hidden[chunk] @ embeddings.T
            index = targets[chunk, None]
            true_logits = logits.gather(1, index)
            largest = logits.amax(1, keepdim=True)
            exponentials = logits.sub_(largest).exp_()
            total = exponentials.sum(1, keepdim=True)
            loss += (total.log() + largest - true_logits).sum()
            errors = exponentials.div_(total * len(hidden))
            errors.scatter_add_(1, index, torch.full_like(true_logits, -1 / len(hidden)))
            torch.mm(errors, embeddings, out=of_hidden[chunk])
            of_embeddings.addmm_(errors.T, hidden[chunk])
        ctx.save_for_backward(of_hidden, of_embeddings)
        return loss / len(hidden)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        of_hidden, of_embeddings = ctx.saved_tensors
        return of_hidden * upstream, of_embeddings * upstream, None


def loss_of(model: LlamaForCausalLM, chosen: np.ndarray) -> torch.Tensor:
    tokens = torch.from_numpy(chosen.astype(np.int64))
    hidden = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
    embeddings = model.get_output_embeddings().weight
    loss: torch.Tensor = _NextTokenLoss.apply(hidden.flatten(0, 1), embeddings, tokens[:, 1:].flatten())
    return loss


def pretrain(size: Size, data: np.ndarray, tokenizer: PreTrainedTokenizerFast, *, partial: Path) -> LlamaForCausalLM:
    """A model that has read all windows `epochs` times, each time in another order."""
    steps_per_epoch = len(data) // WINDOWS_PER_STEP
    num_steps = size.epochs * steps_per_epoch
    model = new_model(size, tokenizer)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=size.peak_rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    first_step = checkpoint.load(partial, model, optimizer) if partial.exists() else 0
    loss_sum = 0.0
    for step in track(range(first_step, num_steps), description=f"width {size.width}"):
        epoch, place = divmod(step, steps_per_epoch)
        order = np.random.default_rng([SEED, 1, epoch]).permutation(len(data))
        loss = loss_of(model, data[order[place * WINDOWS_PER_STEP : (place + 1) * WINDOWS_PER_STEP]])
        optimizer.param_groups[0]["lr"] = size.peak_rate * min((step + 1) / WARMUP_STEPS, 1 - step / num_steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        loss_sum += float(loss.detach())
        if (step + 1) % CHECKPOINT_EVERY_STEPS == 0:
            checkpoint.save(partial, model, optimizer, step=step + 1)
            print(f"step {step + 1} of {num_steps}: loss {loss_sum / CHECKPOINT_EVERY_STEPS:.4f}", flush=True)
            loss_sum = 0.0
    return model


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, data: np.ndarray) -> float:
    """Mean loss on windows of the pages that are kept for tasks."""
    every = max(1, len(data) // NUM_VALIDATION_WINDOWS)
    return float(loss_of(model, data[::every]))


def write_size(folder: Path, size: Size, pages: list[Page], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Pretrain one size and write its folder, with a recipe.json that says how it was made."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "partial.safetensors"
    training, held_out = (
        windows([page for page in pages if page.is_for_tasks == is_held], tokenizer) for is_held in (0, 1)
    )
    model = pretrain(size, training, tokenizer, partial=partial)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    partial.unlink(missing_ok=True)
    recipe = {
        "recipe": "python -m w2s_ray.recipes.english_ladder",
        "seed": SEED,
        "width_and_layers": [size.width, size.num_layers],
        "peak_rate": size.peak_rate,
        "epochs": size.epochs,
        "tokens": size.epochs * (len(training) // WINDOWS_PER_STEP) * WINDOWS_PER_STEP * WINDOW_TOKENS,
        "non_embedding_params": sum(p.numel() for name, p in model.named_parameters() if "embed" not in name),
        "loss_on_other_pages": round(validation_loss(model.float(), held_out), 4),
        "text_sha256": hashlib.sha256(training.tobytes()).hexdigest(),
        "torch": torch.__version__,
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
    }
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
    return recipe


# --- tasks --------------------------------------------------------------------------------------------------------


def task_rows(pages: list[Page]) -> pa.Table:
    """(text, label, page) of the sentences of both databases' manuals that name neither."""
    rows = [
        {"text": text, "label": int(page.manual == TASK_MANUALS[0]), "page": f"{page.manual}/{page.name}"}
        for page in pages
        if page.is_for_tasks
        for text in page.sentences
        if not GIVEAWAYS.search(text)
    ]
    schema = pa.schema({"text": pa.string(), "label": pa.int8(), "page": pa.string()})
    return without_near_equals(pa.Table.from_pylist(rows, schema=schema))


def pair_rows(rows: pa.Table) -> pa.Table:
    """(first, second, shelf): a sentence of the one manual and one of the other, each in one pair at most.

    A shelf holds a page of the second manual and as many of the first as have the same number of sentences. The sentences of a
    pair are from one shelf, so shelves are groups that share no page.
    """
    rng = np.random.default_rng([SEED, 2])
    pages: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    for row in rows.to_pylist():
        pages[1 - row["label"]].setdefault(row["page"], []).append(row["text"])
    first_pages, second_pages = (
        [[page[i] for i in rng.permutation(len(page))[:MAX_PAIRS_PER_PAGE]] for page in side.values()] for side in pages
    )
    left = iter([first_pages[i] for i in rng.permutation(len(first_pages))])
    pairs = []
    for shelf, second in enumerate(second_pages):
        first: list[str] = []
        while len(first) < len(second) and (page := next(left, None)):
            first += page
        pairs += [{"first": one, "second": other, "shelf": shelf} for one, other in zip(first, second, strict=False)]
    schema = pa.schema({"first": pa.string(), "second": pa.string(), "shelf": pa.int16()})
    return pa.Table.from_pylist(pairs, schema=schema)


def without_near_equals(rows: pa.Table) -> pa.Table:
    """Of nearly equal sentences on different pages only those of one page stay.

    Two pages differ in at least one bit of their numbers. So each bit parts the pages in two, and of the one part everything
    goes that is nearly equal to something in the other.
    """
    numbers = {page: number for number, page in enumerate(dict.fromkeys(rows["page"].to_pylist()))}
    for bit in range(len(numbers).bit_length()):
        is_set = [bool(numbers[page] >> bit & 1) for page in rows["page"].to_pylist()]
        shown = pa.table(
            {
                "id": [str(index) for index in range(rows.num_rows)],
                "text": rows["text"],
                "completions": [[]] * rows.num_rows,
            }
        )
        sides = {
            "test": shown.filter(pa.array(is_set)),
            "others": shown.filter(pa.array([not here for here in is_set])),
        }
        near = set(near_duplicates(sides))
        rows = rows.filter(pa.array([id_ not in near for id_ in shown["id"].to_pylist()]))
    return rows


def write_tasks(folder: Path, pages: list[Page]) -> None:
    """Write the rows of both tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = task_rows(pages)
    for name, table in (("manuals", rows), ("manuals-pairs", pair_rows(rows))):
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd", compression_level=19)
        print(f"{name}: {table.num_rows:,} rows", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).parents[1], help="default: the package")
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pages = read_pages(options.folder)
    write_tasks(options.out / "tasks/catalogue", pages)
    tokenizer = new_tokenizer([page for page in pages if not page.is_for_tasks])
    for name in options.sizes:
        recipe = write_size(options.out / "families/catalogue/english" / name, SIZES[name], pages, tokenizer)
        print(f"{name}: {recipe}", flush=True)


if __name__ == "__main__":
    main()
