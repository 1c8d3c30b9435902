"""Which rows belong together. They stay in one part, and count as one unit wherever intervals are drawn.

A task's `group` names the columns to compare and `group_by` says how: see `GroupBy`. Promises: rows that share one key of
their group are in one group, and so are rows joined by a chain of such rows; the order of the rows does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

GroupBy = Literal["value", "part", "first_sentence", "bag_of_words", "prompt", "phrase", "beginning"]
"""How the values of two rows say that the rows belong together:

    value            they are equal
    part             they are equal and in one part (`train` or `test`): for ids that start anew in each
    first_sentence   they begin with the same sentence
    bag_of_words     they have the same words, in any order
    prompt           they are transcripts that differ in the last answer only
    phrase           they are phrases of one sentence: they share PHRASE_WORDS words in a row; a shorter one joins the only
                     sentence that it occurs in
    beginning        one begins the other, as two excerpts of one game do, with at least BEGINNING_WORDS words
"""
PHRASE_WORDS = 5
BEGINNING_WORDS = 30
"""About ten moves of each side. Two games may share a shorter opening."""
LAST_ANSWER = re.compile(r"\n\nAssistant:(?!.*\n\nAssistant:).*", re.DOTALL)


def group_keys(values: Sequence[str], parts: Sequence[str], group_by: GroupBy) -> list[str]:
    """The key of each value. Rows with equal keys belong together."""
    if group_by == "part":
        return [f"{part}:{value}" for value, part in zip(values, parts, strict=True)]
    if group_by == "first_sentence":
        return [re.split(r"(?<=[.!?])\s", value.strip(), maxsplit=1)[0].rstrip(".!? ").lower() for value in values]
    if group_by == "bag_of_words":
        return [" ".join(sorted(re.findall(r"\w+", value.lower()))) for value in values]
    if group_by == "prompt":
        return [LAST_ANSWER.sub("", value) for value in values]
    if group_by == "phrase":
        return _phrases(values)
    return _beginnings(values) if group_by == "beginning" else list(values)


def join(keys_of_rows: Sequence[Sequence[str]]) -> list[str]:
    """For each row the name of its group: the first, in alphabetical order, of all keys that its rows have."""
    parents: dict[str, str] = {}
    for keys in keys_of_rows:
        for key in keys:
            first, second = sorted((_root(keys[0], parents), _root(key, parents)))
            parents[second] = first
    return [_root(keys[0], parents) for keys in keys_of_rows]


def _root(key: str, parents: dict[str, str]) -> str:
    while parents.setdefault(key, key) != key:
        parents[key] = parents[parents[key]]
        key = parents[key]
    return key


def _phrases(values: Sequence[str]) -> list[str]:
    words_of_rows = [value.lower().split() for value in values]
    long_ones = [i for i, words in enumerate(words_of_rows) if len(words) >= PHRASE_WORDS]
    sentences = join([_runs(words_of_rows[i], PHRASE_WORDS) for i in long_ones])
    keys = [" ".join(words) for words in words_of_rows]
    only_sentence: dict[str, str | None] = {}
    """Run of words -> the sentence that it occurs in, None if it occurs in several."""
    for i, sentence in zip(long_ones, sentences, strict=True):
        keys[i] = sentence
        for length in range(1, PHRASE_WORDS):
            for run in _runs(words_of_rows[i], length):
                if only_sentence.setdefault(run, sentence) != sentence:
                    only_sentence[run] = None
    return [only_sentence.get(key) or key for key in keys]


def _runs(words: list[str], length: int) -> list[str]:
    return [" ".join(words[start : start + length]) for start in range(len(words) - length + 1)]


def _beginnings(values: Sequence[str]) -> list[str]:
    keys = list(values)
    stack: list[str] = []
    """In alphabetical order a value comes right before those that it begins: here is the chain to the current one."""
    for i in sorted(range(len(values)), key=values.__getitem__):
        while stack and not f"{values[i]} ".startswith(f"{stack[-1]} "):
            stack.pop()
        if len(values[i].split()) >= BEGINNING_WORDS:
            stack.append(values[i])
        keys[i] = stack[0] if stack else values[i]
    return keys
