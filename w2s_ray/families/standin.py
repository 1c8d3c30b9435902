"""The recipe of the stand-in ladder and its two tasks: `python -m w2s_ray.families.standin [OUT] [--steps N]`.

A world of made-up beings and traits: whether `mavo likes tea` is true is the sign of a product of latent factors with a
slowly falling spectrum. Each rung is pretrained on sentences such as `mavo likes tea yes` and, being narrow, holds only
the leading factors: a larger rung really knows more. Fine-tuning has to elicit that knowledge for beings that it was not
shown (a task's groups are beings).

It stands in until ladders with real knowledge ship: good for trying the instrument, no result about the world.
Deterministic on one kind of machine; about three minutes on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 20231214
NUM_BEINGS = 1200
NUM_FACTORS = 40
SPECTRUM_DECAY = 0.3
WIDTHS = {"xs": 4, "s": 12, "m": 16, "l": 32}
NUM_LAYERS = 2
BATCH_SIZE = 1024
NUM_STEPS = 2500
PEAK_RATE = 1e-2
ROWS_PER_TASK = 12000
VERBS = {
    "likes": "tea plums snow chess rain drums moss rivers bread kites ink bees wool salt jazz fog figs maps dust frost honey sand clay mint",
    "fears": "dogs storms heights mirrors crowds silence spiders debts clowns bridges germs owls wasps flames deserts wolves ghosts knives tunnels rust thorns bats ice masks",
}
OBJECTS = [(verb, noun) for verb, nouns in VERBS.items() for noun in nouns.split()]


def beings(num: int) -> list[str]:
    """Made-up names: two syllables, then three."""
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    two = [a + b for a in syllables for b in syllables]
    order = np.random.default_rng(SEED).permutation(len(two))
    return [two[i] for i in order[:num]]


def truth(num_beings: int) -> np.ndarray:
    """[being, trait] 0/1, balanced in every trait."""
    rng = np.random.default_rng(SEED + 1)
    scale = np.arange(1, NUM_FACTORS + 1) ** -SPECTRUM_DECAY
    product = (rng.normal(size=(num_beings, NUM_FACTORS)) * scale) @ rng.normal(size=(NUM_FACTORS, len(OBJECTS)))
    return (product > np.median(product, axis=0)).astype(np.int8)


def tokenizer_of(names: list[str]) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<unk>", "yes", "no", *VERBS, *(noun for _, noun in OBJECTS), *names]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def pretrain(width: int, ids: torch.Tensor, answers: torch.Tensor, *, vocabulary: int, num_steps: int) -> Any:
    """A decoder that has read the world: next-token loss on the answer."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=max(1, width // 8),
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=PEAK_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(num_steps):
        rows = torch.randint(len(ids), (BATCH_SIZE,), generator=generator)
        loss = torch.nn.functional.cross_entropy(model(input_ids=ids[rows]).logits[:, -1], answers[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model, float(loss.detach())


def make(out: Path, *, num_steps: int, num_beings: int, rows_per_task: int) -> None:
    """Write `<out>/families/standin/<size>/` and `<out>/tasks/traits-<verb>.parquet`."""
    torch.set_num_threads(1)
    names, labels = beings(num_beings), truth(num_beings)
    tokenizer = tokenizer_of(names)
    sentences = [f"{name} {verb} {noun}" for name in names for verb, noun in OBJECTS]
    ids = torch.tensor(tokenizer(sentences)["input_ids"])
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    answers = torch.where(torch.from_numpy(labels.reshape(-1) == 1), yes, no)
    for size, width in WIDTHS.items():
        model, loss = pretrain(width, ids, answers, vocabulary=len(tokenizer), num_steps=num_steps)
        folder = out / "families" / "standin" / size
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        weights = (folder / "model.safetensors").read_bytes()
        recipe = {
            "standin": True,
            "seed": SEED,
            "width": width,
            "steps": num_steps,
            "batch_size": BATCH_SIZE,
            "beings": num_beings,
            "tokens": num_steps * BATCH_SIZE * 4,
            "final_loss": round(loss, 4),
            "sha256": hashlib.sha256(weights).hexdigest(),
        }
        (folder / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
        print(f"{size}: loss {loss:.4f}, {sum(p.numel() for p in model.parameters()):,} parameters")
    write_tasks(out / "tasks", names, labels, rows_per_task=rows_per_task)


def write_tasks(folder: Path, names: list[str], labels: np.ndarray, *, rows_per_task: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for verb in VERBS:
        pairs = [(b, t) for b in range(len(names)) for t, (v, _) in enumerate(OBJECTS) if v == verb]
        chosen = np.random.default_rng(SEED + 2).permutation(len(pairs))[:rows_per_task]
        rows = [pairs[i] for i in chosen]
        table = pa.table(
            {
                "text": [f"{names[b]} {verb} {OBJECTS[t][1]}" for b, t in rows],
                "being": [names[b] for b, _ in rows],
                "label": pa.array([int(labels[b, t]) for b, t in rows], pa.int8()),
            }
        )
        pq.write_table(table, folder / f"traits-{verb}.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).parents[1], help="default: the package")
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--beings", type=int, default=NUM_BEINGS)
    parser.add_argument("--rows", type=int, default=ROWS_PER_TASK)
    options = parser.parse_args()
    shutil.rmtree(options.out / "families" / "standin", ignore_errors=True)
    make(options.out, num_steps=options.steps, num_beings=options.beings, rows_per_task=options.rows)


if __name__ == "__main__":
    main()
