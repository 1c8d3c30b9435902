"""Rows of the columns, types and oddities that the hub's data sets have, laid out as on the hub, in small numbers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NUM = 24
"""Rows of each split."""


def _hh(i: int) -> dict[str, Any]:
    prompt = f"\n\nHuman: question {i}?\n\nAssistant: What do you mean?\n\nHuman: this, {i}."
    good, bad = f"{prompt}\n\nAssistant: kind answer {i}", f"{prompt}\n\nAssistant: rude answer {i}"
    if i == 3:  # the prompts differ at the last turn
        bad = bad.replace("\n\nHuman: this", "\n\nHuman: that")
    if i == 4:  # an empty completion
        bad = f"{prompt}\n\nAssistant:"
    return {"chosen": good, "rejected": bad}


def _mc(i: int, names: str = "ABCD", count: int = 4) -> dict[str, Any]:
    return {"text": [f"option {i} {n}" for n in names[:count]], "label": list(names[:count])}


def _messages(i: int, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"{answer} {i}"}]


def _lichess(i: int, *, old: bool) -> dict[str, Any]:
    row = {
        "PuzzleId": f"p{i:04d}",
        "FEN": f"r6k/pp2r2p/4Rp1Q/3p4/8/1N1P2R1/PqP2bPP/7K b - - 0 {24 + i}",
        "Rating": 800 + 50 * i,
        "RatingDeviation": 80,
        "Popularity": 95,
        "NbPlays": 1000,
    }
    moves = ["f2g3", "e6e7", "b2b1", "b3c1"]
    if old:
        more: dict[str, Any] = {"Moves": " ".join(moves), "Themes": "crushing hangingPiece", "OpeningTags": None}
        return row | more | {"GameUrl": f"https://lichess.org/game{i:04d}/black#48"}
    return row | {"Moves": moves, "Themes": ["crushing"], "OpeningTags": None, "GameId": f"game{i:04d}/black#48"}


ROWS: dict[str, tuple[str, dict[str, str], Callable[[int], dict[str, Any]]]] = {
    # task: (repository, split -> file, row of a number)
    "boolq": (
        "google/boolq",
        {"train": "default/train/0000.parquet", "test": "default/validation/0000.parquet"},
        lambda i: {"question": f"is it {i}", "answer": i % 3 > 0, "passage": f"passage {i // 2}"},
    ),
    "dream": (
        "dataset-org/dream",
        {"train": "plain_text/train/0000.parquet", "test": "plain_text/test/0000.parquet"},
        lambda i: {
            "id": i,
            "dialogue_id": f"d{i // 2}",
            "dialogue": [f"M: hello {i}", f"W: 7 o'clock {i}"],
            "question": f"when {i}?",
            "choice": ["7", "8", "8"] if i == 5 else ["7", "8", "9"],  # numbers as text, a choice given twice
            "answer": "8",
        },
    ),
    "ethics-justice": (
        "EleutherAI/hendrycks_ethics",
        {"train": "justice/train/0000.parquet", "test": "justice/test/0000.parquet"},
        lambda i: {"group_id": i // 4, "label": i % 2, "scenario": f"I do {i} because of {i % 4}."},
    ),
    "ethics-deontology": (
        "EleutherAI/hendrycks_ethics",
        {"train": "deontology/train/0000.parquet", "test": "deontology/test/0000.parquet"},
        lambda i: {"group_id": i // 4, "label": i % 2, "scenario": f"Could you do {i // 4}?", "excuse": f"No, {i}."},
    ),
    "ethics-virtue": (
        "EleutherAI/hendrycks_ethics",
        {"train": "virtue/train/0000.parquet", "test": "virtue/test/0000.parquet"},
        lambda i: {"label": int(i % 5 == 0), "scenario": f"Jo did {i // 5}.", "trait": f"trait {i % 5}"},
    ),
    "ethics-utilitarianism": (
        "hendrycks/ethics",
        {"train": "data/utilitarianism/train.csv", "test": "data/utilitarianism/test.csv"},
        lambda i: {"": f'"I won, {i}."', " ": f"I lost {i}."},  # no header; the first is always the better
    ),
    "anli-r2": (
        "facebook/anli",
        {"train": "plain_text/train_r2/0000.parquet", "test": "plain_text/test_r2/0000.parquet"},
        lambda i: {"uid": f"u{i}", "premise": f"p {i // 3}", "hypothesis": f"h {i}", "label": i % 3, "reason": ""},
    ),
    "cola": (
        "nyu-mll/glue",
        {"train": "cola/train/0000.parquet", "test": "cola/validation/0000.parquet"},
        lambda i: {"sentence": f"Sentence {i}.", "label": -1 if i == 2 else int(i % 3 > 0), "idx": i},
    ),
    "sst2": (
        "nyu-mll/glue",
        {"train": "sst2/train/0000.parquet", "test": "sst2/validation/0000.parquet"},
        lambda i: {"sentence": f"phrase {i} ", "label": i % 2, "idx": i},
    ),
    "hellaswag": (
        "Rowan/hellaswag",
        {"train": "default/train/0000.parquet", "test": "default/validation/0000.parquet"},
        lambda i: {
            "ind": i,
            "activity_label": "Cooking",
            "ctx_a": "",
            "ctx_b": "",
            "ctx": f"[header] How to cook {i} [title] Boil.",
            "endings": [f"[step] ending {i} {k}" for k in range(4)],
            "source_id": f"s{i // 2}",
            "split": "train",
            "split_type": "indomain",
            "label": "" if i == 6 else str(i % 4),  # labels are text, and empty in the test split
        },
    ),
    "openbookqa": (
        "allenai/openbookqa",
        {"train": "main/train/0000.parquet", "test": "main/test/0000.parquet"},
        lambda i: {"id": f"q{i}", "question_stem": f"Stem {i}", "choices": _mc(i), "answerKey": "ABCD"[i % 4] + " "},
    ),
    "paws": (
        "google-research-datasets/paws",
        {"train": "labeled_final/train/0000.parquet", "test": "labeled_final/test/0000.parquet"},
        lambda i: {"id": i, "sentence1": f"a b {i // 2}", "sentence2": f"b a {i // 2} x{i % 2}", "label": i % 2},
    ),
    "quail": (
        "textmachinelab/quail",
        {"train": "quail/train/0000.parquet", "test": "quail/validation/0000.parquet"},
        lambda i: {
            "id": f"{i}",
            "context_id": f"c{i // 6}",
            "context": f"Long context {i // 6}.",
            "question": f"What {i}?",
            "answers": [f"a {i}", f"b {i}", f"c {i}", "not enough information"],
            "correct_answer_id": i % 4,
        },
    ),
    "piqa": (
        "ybisk/piqa",
        {"train": "plain_text/train/0000.parquet", "test": "plain_text/validation/0000.parquet"},
        lambda i: {"goal": f"goal {i}", "sol1": f"do {i}", "sol2": f"don't {i}", "label": -1 if i == 1 else i % 2},
    ),
    "quartz": (
        "allenai/quartz",
        {"train": "default/train/0000.parquet", "test": "default/test/0000.parquet"},
        lambda i: {
            "id": f"QR-{i}",
            "question": f"More {i} or less?",
            "choices": _mc(i, count=2),
            "answerKey": "AB"[i % 2],
            "para": f"Para {i // 3}",
            "para_id": f"P{i // 3}",
            "para_anno": {"effect_prop": "x"},
        },
    ),
    "sciq": (
        "allenai/sciq",
        {"train": "default/train/0000.parquet", "test": "default/test/0000.parquet"},
        lambda i: {
            "question": f"How many {i}?",
            "correct_answer": f"{i % 4}",  # an answer that looks like the number of a choice
            "distractor1": f"{i % 4}." if i == 2 else f"many {i}",  # once a distractor that is the answer
            "distractor2": f"few {i}",
            "distractor3": f"none {i}",
            "support": "" if i % 5 == 0 else f"There are {i % 4}.",
        },
    ),
    "social-iqa": (
        "lighteval/siqa",
        {"train": "default/train/0000.parquet", "test": "default/validation/0000.parquet"},
        lambda i: {
            "context": f"Sam {i // 2}.",
            "question": f"Why {i}?",
            **{f"answer{n}": f"{n} {i}" for n in "ABC"},
            "label": f"{i % 3 + 1}\n",
        },
    ),
    "multirc": (
        "aps/super_glue",
        {"train": "multirc/train/0000.parquet", "test": "multirc/validation/0000.parquet"},
        lambda i: {
            "paragraph": f"Paragraph {i // 6}",
            "question": f"What {i // 3}?",
            "answer": f"answer {i}",
            "idx": {"paragraph": i // 6, "question": i // 3, "answer": i},
            "label": i % 2,
        },
    ),
    "wic": (
        "aps/super_glue",
        {"train": "wic/train/0000.parquet", "test": "wic/validation/0000.parquet"},
        lambda i: {
            "word": f"w{i // 2}", "sentence1": f"one {i}", "sentence2": f"two {i}", "start1": 0, "start2": 0,
            "end1": 1, "end2": 1, "idx": i, "label": i % 2,
        },
    ),
    "twitter-sentiment": (
        "EleutherAI/twitter-sentiment",
        {"train": "default/train/0000.parquet", "test": "default/test/0000.parquet"},
        lambda i: {"text": f"! so {i}", "label": i % 2},
    ),
    "amazon-polarity": (
        "fancyzhx/amazon_polarity",
        {"train": "amazon_polarity/train/0000.parquet", "test": "amazon_polarity/test/0000.parquet"},
        lambda i: {"label": i % 2, "title": "" if i == 1 else f"Title {i}", "content": f"Content {i}"},
    ),
    "hh-rlhf": ("Anthropic/hh-rlhf", {"train": "default/train/0000.parquet", "test": "default/test/0000.parquet"}, _hh),
    "hh-harmless-base": (
        "Anthropic/hh-rlhf",
        {"train": "harmless-base/train.jsonl.gz", "test": "harmless-base/test.jsonl.gz"},
        _hh,
    ),
    "ultrafeedback": (
        "HuggingFaceH4/ultrafeedback_binarized",
        {"train": "default/train_prefs/0000.parquet", "test": "default/test_prefs/0000.parquet"},
        lambda i: {
            "prompt": f"question {i}", "prompt_id": f"{i}", "chosen": _messages(i, "good"),
            "rejected": _messages(i, "bad"), "score_chosen": 8.0, "score_rejected": 8.0 if i == 1 else 4.0,
        },
    ),
    "summarize-from-feedback": (
        "openai/summarize_from_feedback",
        {"train": "comparisons/train/0000.parquet", "test": "comparisons/validation/0000.parquet"},
        lambda i: {
            "info": {"id": f"t{i}", "post": None if i == 2 else f"Post {i}.", "article": f"News {i}." if i == 2 else None},
            "summaries": [{"text": f" first {i}", "policy": "x"}, {"text": f" second {i}", "policy": "y"}],
            "choice": i % 2,
        },
    ),
    "helpsteer2": (
        "nvidia/HelpSteer2",
        {"train": "default/train/0000.parquet", "test": "default/validation/0000.parquet"},
        lambda i: {
            "prompt": f"question {i // 2}", "response": f"answer {i}",
            "helpfulness": 2 if i // 2 == 3 else i % 2 + i % 3, "correctness": 1,
        },
    ),
    "helpsteer3": (
        "nvidia/HelpSteer3",
        {"train": "preference/train.jsonl.gz", "test": "preference/validation.jsonl.gz"},
        lambda i: {
            "context": [{"role": "user", "content": f"question {i}"}], "response1": f"one {i}", "response2": f"two {i}",
            "overall_preference": (-2, 0, 3)[i % 3], "domain": "general", "language": "english",
        },
    ),
    "shp": (
        "stanfordnlp/SHP",
        {"train": "default/train/0000.parquet", "test": "default/test/0000.parquet"},
        lambda i: {
            "history": f"post {i // 2}", "human_ref_A": f"reply {i}", "human_ref_B": f"other {i}", "labels": i % 2,
            "score_A": 10, "score_B": (3, 30, 10)[i % 3], "post_id": f"x{i // 2}",
        },
    ),
    "reward-bench": (
        "allenai/reward-bench",
        {"train": "default/filtered/0000.parquet"},
        lambda i: {
            "prompt": f"question {i}", "chosen": f"well {i}", "chosen_model": "x", "rejected": f"badly {i}",
            "rejected_model": "y", "subset": "alpacaeval-easy", "id": i,
        },
    ),
    "lichess-puzzles": (
        "EleutherAI/lichess-puzzles",
        {"train": "default/train/0000.parquet"},
        lambda i: {"id": f"p{i}", "ctx": f"1. e4 e5 2. Nf3 {i}", "target": " Qh5#"},
    ),
    "chess-puzzles": (
        "Lichess/chess-puzzles",
        {"train": "default/train/0000.parquet"},
        lambda i: _lichess(i, old=False),
    ),
}  # fmt: skip
SAME_FILES = {"sciq-with-support": "sciq", "anthropic-hh": "hh-rlhf", "hh-on-reward-bench": "hh-rlhf"}
URLS: dict[str, tuple[dict[str, str], Callable[[int], list[str]], list[str] | None]] = {
    "cosmos-qa": (
        {
            "train": "raw.githubusercontent.com/wilburOne/cosmosqa/master/data/train.csv",
            "test": "raw.githubusercontent.com/wilburOne/cosmosqa/master/data/valid.csv",
        },
        lambda i: [
            f"q{i}", f'"Context, {i // 2}."', f"Why {i}?", f"a {i}", f"b {i}", f"c {i}",
            "None of the above choices .", str(i % 4),
        ],
        ["id", "context", "question", "answer0", "answer1", "answer2", "answer3", "label"],
    ),
    "mc-taco": (
        {
            "train": "raw.githubusercontent.com/CogComp/MCTACO/master/dataset/test_9442.tsv",
            "test": "raw.githubusercontent.com/CogComp/MCTACO/master/dataset/dev_3783.tsv",
        },
        lambda i: [f'He said "{i // 3}', "How long?", f"{i} hours", "yes" if i % 2 else "no", "Event Duration"],
        None,
    ),
}  # fmt: skip


def write(folder: Path, task: str, *, change: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row) -> None:
    """A task's data set below a folder that stands for the hub."""
    if task in URLS:
        paths, row_of, header = URLS[task]
        for number, (part, inside) in enumerate(paths.items()):
            path = folder / "urls" / inside
            path.parent.mkdir(parents=True, exist_ok=True)
            between = "\t" if path.suffix == ".tsv" else ","
            lines = [between.join(row_of(i + 1000 * number)) for i in range(NUM)]
            path.write_text("\n".join([*([between.join(header)] if header else []), *lines]) + "\n")
            assert part
        return
    repo, paths, make = ROWS[SAME_FILES.get(task, task)]
    for number, inside in enumerate(paths.values()):
        path = folder / "datasets" / repo / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [change(make(i + 1000 * number)) for i in range(NUM)]
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif path.suffix == ".csv":
            path.write_text("\n".join(",".join(row.values()) for row in rows) + "\n")
        else:
            path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))
