"""Dealing a task's rows into half A, half B and the test set.

Promises: the three parts share no group and no text; every label is equally frequent in each part; the result depends on
the rows' ids and the seed alone, not on the order of the file nor on the process; the test set stays the same when the
halves grow or are limited to a range of difficulty.
"""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa

from w2s_ray.errors import InputError
from w2s_ray.tasks.rows import text_hash

Row = dict[str, Any]
Group = list[Row]
"""Rows that must stay in one part."""
ANY_DIFFICULTY = (-math.inf, math.inf)


def deal(
    rows: pa.Table,
    *,
    split_seed: int,
    num_train: int | None,
    num_test: int | None,
    difficulty: tuple[float, float] = ANY_DIFFICULTY,
) -> dict[str, pa.Table]:
    """Deal rows into `A`, `B` and `test`.

    Groups are taken in the order of their hash under `split_seed`, the test set first. `num_train` is the number of rows in
    each half (None: as many as there are). `num_test` defaults to all rows of the task's test file, or to a fifth of the
    rows where it has none. `difficulty` limits the halves, never the test set.
    """
    groups = _groups_in_hash_order(rows.to_pylist(), split_seed=split_seed)
    test, rest = _take_test_set(groups, num_test=num_test, num_rows=rows.num_rows)
    half_a, half_b = _take_halves(_within(difficulty, rest), num_train=num_train)
    parts = {"A": half_a, "B": half_b, "test": test}
    for name, part in parts.items():
        num_wanted = (num_test if name == "test" else num_train) or 2
        if len(part) < num_wanted // 2 * 2:
            raise InputError(
                f"split: {num_wanted} rows with balanced labels are wanted in {name}, but only {len(part)} are "
                f"left of {rows.num_rows}; lower split.num_train or split.num_test"
            )
    return {name: pa.Table.from_pylist(part, schema=rows.schema) for name, part in parts.items()}


def _take_test_set(groups: list[Group], *, num_test: int | None, num_rows: int) -> tuple[list[Row], list[Group]]:
    """The test set and the groups left for the halves."""
    of_test_file = [[row for row in group if row["part"] == "test"] for group in groups]
    if not any(of_test_file):
        return _take_balanced(groups, num_rows // 5 if num_test is None else num_test)
    # a group with a row in the test file is kept from the halves with all its rows
    test, _ = _take_balanced([group for group in of_test_file if group], num_test)
    return test, [group for group, test_rows in zip(groups, of_test_file, strict=True) if not test_rows]


def _within(difficulty: tuple[float, float], groups: list[Group]) -> list[Group]:
    if difficulty == ANY_DIFFICULTY:
        return groups
    low, high = difficulty
    limited = [[row for row in group if low <= row["difficulty"] <= high] for group in groups]
    return [group for group in limited if group]


def _take_halves(groups: list[Group], *, num_train: int | None) -> tuple[list[Row], list[Row]]:
    if num_train is not None:
        half_a, rest = _take_balanced(groups, num_train)
        half_b, _ = _take_balanced(rest, num_train)
        return half_a, half_b
    # every other group, cut to the size of the smaller half
    halves = [_take_balanced(groups[start::2], None)[0] for start in (0, 1)]
    size = min(map(len, halves))
    half_a, half_b = (_take_balanced([[row] for row in half], size)[0] for half in halves)
    return half_a, half_b


def _groups_in_hash_order(rows: list[Row], *, split_seed: int) -> list[Group]:
    """Groups, merged where they share a text, in the order of their hash under the seed; rows within a group likewise."""
    parents: dict[str, str] = {}  # union-find over group names and texts

    def root(node: str) -> str:
        while parents.setdefault(node, node) != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    for row in rows:
        is_comparison = len(row["completions"]) == 2
        for completion in row["completions"] if is_comparison else [""]:
            of_group, of_text = root(f"group:{row['group']}"), root(f"text:{row['text']}\0{completion}")
            parents[max(of_group, of_text)] = min(of_group, of_text)
    groups: dict[str, Group] = {}
    for row in sorted(rows, key=lambda row: text_hash(f"{split_seed}:{row['id']}")):
        groups.setdefault(root(f"group:{row['group']}"), []).append(row)
    return sorted(
        groups.values(), key=lambda group: min(text_hash(f"{split_seed}:group:{row['group']}") for row in group)
    )


def _take_balanced(groups: list[Group], num_rows: int | None) -> tuple[list[Row], list[Group]]:
    """Rows from the front, equally many of each label, and the groups that were not touched.

    `num_rows` None takes as many rows as the rarest label allows. In a generation, whose rows have no label, all rows count
    as one label.
    """
    labels = {row["label"] for group in groups for row in group} or {None}
    if labels != {None}:
        labels |= {0, 1}
    if num_rows is None:
        num_per_label = min(sum(row["label"] == label for group in groups for row in group) for label in labels)
    else:
        num_per_label = num_rows // len(labels)
    taken: dict[int | None, list[Row]] = {label: [] for label in sorted(labels, key=str)}
    for index, group in enumerate(groups):
        if min(map(len, taken.values())) >= num_per_label:
            return [row for rows in taken.values() for row in rows], groups[index:]
        for row in group:
            if len(taken[row["label"]]) < num_per_label:
                taken[row["label"]].append(row)
    size = min(map(len, taken.values()))
    return [row for rows in taken.values() for row in rows[:size]], []
