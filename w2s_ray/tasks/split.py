"""Dealing a task's rows into half A, half B and the test set, and into fresh parts F1, F2, ... for chains, if wanted.

Promises: the parts share no group and no text; every label is equally frequent in each part; the result depends on
the rows' ids and the seeds alone, not on the order of the file nor on the process; the test set stays the same when the
halves grow, are dealt anew, or are limited to a range of difficulty; halves that grow keep the rows that they had; fresh parts
take groups that the halves leave, and change nothing of them.

Where rows come in groups, every part gets its share of the groups and takes its rows from them in turns: the first row of
each group, then the second, and so on. So a part holds rows of as many groups as it can, and no group dominates it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa

from w2s_ray.errors import InputError
from w2s_ray.fit import Data
from w2s_ray.tasks.rows import Row, text_hash

Group = list[Row]
"""Rows that must stay in one part."""
ANY_DIFFICULTY = (-math.inf, math.inf)
SPARE_TEST_SHARE = 0.1
"""Besides the rows that are asked for, the test set's groups hold this share of the other rows, so that it can take a few rows
of each of many groups. The share must not depend on the size of the halves, or the test set would change when they grow."""
MIN_EFFECTIVE_GROUPS = 30
"""With fewer groups in a part, no interval over groups can be trusted."""


@dataclass(frozen=True)
class Deal:
    """How rows are dealt. What the test set is depends on `seed`, `num_test` and `rows_per_group` alone."""

    seed: int = 0
    num_train: int | None = None
    """Rows in each half; None takes as many as there are."""
    num_test: int | None = None
    """None takes all rows of the task's test file, or a fifth of the rows where it has none."""
    halves_seed: int | None = None
    """Deals the halves anew for each replicate; None deals them under `seed`."""
    is_swapped: bool = False
    """Exchanges A and B."""
    rows_per_group: int | None = None
    """No part takes more rows of one group."""
    difficulty: tuple[float, float] = ANY_DIFFICULTY
    """Limits the halves and the fresh parts, never the test set."""
    num_fresh: int = 0
    """Fresh parts, each as large as a half. They need `num_train`."""

    @classmethod
    def of(cls, data: Data) -> Deal:
        """How a Fit's data are dealt."""
        return cls(
            seed=data.split_seed,
            num_train=data.num_train,
            num_test=data.num_test,
            halves_seed=data.halves_seed,
            is_swapped=data.is_swapped,
            rows_per_group=data.rows_per_group,
            difficulty=data.difficulty[1:] if data.difficulty else ANY_DIFFICULTY,
            num_fresh=data.num_fresh,
        )


@dataclass(frozen=True)
class PartFacts:
    """How many rows and groups a part has."""

    num_rows: int
    num_groups: int
    largest_group: int
    """Rows of the largest group."""
    effective_groups: float
    """(sum n)^2 / sum n^2: how many groups of equal size would carry as much information."""


def part_facts(part: pa.Table) -> PartFacts:
    return _facts(part["group"].to_pylist())


def facts_of_parts(parts: dict[str, list[Row]]) -> dict[str, PartFacts]:
    return {name: _facts([row["group"] for row in part]) for name, part in parts.items()}


def _facts(groups: list[str]) -> PartFacts:
    sizes = Counter(groups).values()
    return PartFacts(
        num_rows=len(groups),
        num_groups=len(sizes),
        largest_group=max(sizes, default=0),
        effective_groups=len(groups) ** 2 / sum(size**2 for size in sizes) if sizes else 0.0,
    )


def deal(rows: pa.Table, how: Deal) -> dict[str, pa.Table]:
    """Deal rows into `A`, `B`, `test` and the fresh parts. In the result `group` is the group after merging those that share a text."""
    dealt = deal_arranged(arrange(rows.to_pylist(), how), how)
    return {name: pa.Table.from_pylist(part, schema=rows.schema) for name, part in dealt.items()}


@dataclass(frozen=True)
class Arranged:
    """A task's rows in their groups, in the order of the split's hash. All replicates of a split are dealt from these."""

    groups: list[Group]
    num_rows: int
    """Of the task, before `rows_per_group`."""
    in_groups: bool
    """Whether the task names groups, of more than one row."""
    test_sets: dict[int | None, tuple[list[Row], list[Group]]] = field(default_factory=dict)
    """`num_test` -> the test set, and the groups left for the halves. Taken once, for all replicates."""


def arrange(rows: list[Row], how: Deal) -> Arranged:
    """Rows as `how` orders them. Only its `seed` and `rows_per_group` count."""
    groups = _groups_in_hash_order(rows, split_seed=how.seed)
    if how.rows_per_group is not None:
        groups = [group[: how.rows_per_group] for group in groups]
    in_groups = max(map(len, groups), default=0) > 1 and _has_named_groups(rows)
    return Arranged(groups, len(rows), in_groups)


def deal_arranged(arranged: Arranged, how: Deal) -> dict[str, list[Row]]:
    """Deal rows that were arranged for the same `seed` and `rows_per_group`."""
    if how.num_test not in arranged.test_sets:
        take = _draw_test_set if arranged.in_groups else _take_test_set
        arranged.test_sets[how.num_test] = take(arranged.groups, num_test=how.num_test, num_rows=arranged.num_rows)
    test, rest = arranged.test_sets[how.num_test]
    parts = (_deal_groups if arranged.in_groups else _deal_rows)(rest, how)
    parts = {"A": parts.pop("A"), "B": parts.pop("B"), "test": test, **parts}
    for name, part in parts.items():
        num_wanted = (how.num_test if name == "test" else how.num_train) or 2
        if len(part) < num_wanted // 2 * 2:
            lower = (
                "split.num_train, split.num_test or split.fresh"
                if how.num_fresh
                else "split.num_train or split.num_test"
            )
            raise InputError(
                f"split: {num_wanted} rows with balanced labels are wanted in {name}, but only {len(part)} are "
                f"left of {arranged.num_rows} in {len(arranged.groups)} groups; lower {lower}"
            )
    if how.is_swapped:
        parts["A"], parts["B"] = parts["B"], parts["A"]
    return parts


def _has_named_groups(rows: list[Row]) -> bool:
    """Whether the task names a group column. Without one, a row's group is its own text, or its id where that is empty."""
    return any(row["group"] not in (row["text"], row["id"]) for row in rows)


# --- rows without groups: parts are cut one after another --------------------------------------------------------------


def _deal_rows(groups: list[Group], how: Deal) -> dict[str, list[Row]]:
    """The halves and the fresh parts, from groups that the test set leaves."""
    (half_a, half_b), rest = _take_halves(_within(how.difficulty, _reordered(groups, how)), num_train=how.num_train)
    parts = {"A": half_a, "B": half_b}
    for name in _fresh_names(how):
        parts[name], rest = _take_balanced(rest, how.num_train)
    return parts


def _fresh_names(how: Deal) -> list[str]:
    return [f"F{number}" for number in range(1, how.num_fresh + 1)]


def _take_test_set(groups: list[Group], *, num_test: int | None, num_rows: int) -> tuple[list[Row], list[Group]]:
    """The test set and the groups left for the halves."""
    of_test_file, rest = _test_file(groups)
    if of_test_file:
        return _take_balanced(of_test_file, num_test)[0], rest
    return _take_balanced(groups, num_rows // 5 if num_test is None else num_test)


def _test_file(groups: list[Group]) -> tuple[list[Group], list[Group]]:
    """(rows of the task's test file in their groups, groups without such a row)."""
    of_test_file = [[row for row in group if row["part"] == "test"] for group in groups]
    rest = [group for group, test_rows in zip(groups, of_test_file, strict=True) if not test_rows]
    return [group for group in of_test_file if group], rest


def _within(difficulty: tuple[float, float], groups: list[Group]) -> list[Group]:
    if difficulty == ANY_DIFFICULTY:
        return groups
    low, high = difficulty
    limited = [[row for row in group if low <= row["difficulty"] <= high] for group in groups]
    return [group for group in limited if group]


def _reordered(groups: list[Group], how: Deal) -> list[Group]:
    """Groups, and the rows in each, in the order of the replicate's own hash."""
    if how.halves_seed is None:
        return groups
    seed = f"{how.seed}:{how.halves_seed}"
    by_row = [
        sorted(group, key=lambda row: text_hash(f"{seed}:{row['id']}")) if len(group) > 1 else group for group in groups
    ]
    return sorted(by_row, key=lambda group: text_hash(f"{seed}:group:{group[0]['group']}"))


def _take_halves(groups: list[Group], *, num_train: int | None) -> tuple[tuple[list[Row], list[Row]], list[Group]]:
    """The halves, and the groups that they leave."""
    if num_train is not None:
        half_a, rest = _take_balanced(groups, num_train)
        half_b, rest = _take_balanced(rest, num_train)
        return (half_a, half_b), rest
    # every other group, cut to the size of the smaller half
    halves = [_take_balanced(groups[start::2], None)[0] for start in (0, 1)]
    size = min(map(len, halves))
    half_a, half_b = (_take_balanced([[row] for row in half], size)[0] for half in halves)
    return (half_a, half_b), []


# --- rows in groups: groups are dealt to the parts, rows are drawn in turns ---------------------------------------------


def _draw_test_set(groups: list[Group], *, num_test: int | None, num_rows: int) -> tuple[list[Row], list[Group]]:
    """The test set and the groups left for the halves."""
    test_groups, rest = _test_groups(groups, num_test=num_test, num_rows=num_rows)
    if num_test is None and not _test_file(groups)[0]:
        num_test = num_rows // 5
    return _draw_in_turns(test_groups, num_test), rest


def _deal_groups(groups: list[Group], how: Deal) -> dict[str, list[Row]]:
    """The halves and the fresh parts, from groups that the test set leaves."""
    ordered = _reordered(groups, how)
    halves = [_within(how.difficulty, half) for half in _deal_by_weight(ordered, num_parts=2)]
    num_train = how.num_train
    if num_train is None:
        num_train = min(_num_balanced(half) for half in halves)
    half_a, half_b = (_draw_in_turns(half, num_train) for half in halves)
    parts = {"A": half_a, "B": half_b}
    if how.num_fresh:
        touched = {row["group"] for row in (*half_a, *half_b)}
        left = [group for group in _within(how.difficulty, ordered) if group[0]["group"] not in touched]
        dealt = _deal_by_weight(left, num_parts=how.num_fresh)
        parts |= {name: _draw_in_turns(part, num_train) for name, part in zip(_fresh_names(how), dealt, strict=True)}
    return parts


def _test_groups(groups: list[Group], *, num_test: int | None, num_rows: int) -> tuple[list[Group], list[Group]]:
    """(the test set's groups, the others). The test set gets all groups of a test file, or groups from the front."""
    of_test_file, rest = _test_file(groups)
    if of_test_file:
        return of_test_file, rest
    wanted, weights, labels = num_rows // 5 if num_test is None else num_test, _weights(groups), _labels(groups)
    num_held = wanted if num_test is None else wanted + SPARE_TEST_SHARE * max(0, num_rows - wanted)
    target = sum(weights) * num_held / num_rows
    weight, held = 0.0, Counter[int | None]()
    for index, group in enumerate(groups):
        if weight >= target and min(held[label] for label in labels) >= wanted // len(labels):
            return groups[:index], groups[index:]
        weight += weights[index]
        held.update(row["label"] for row in group)
    return groups, []


def _weights(groups: list[Group]) -> list[float]:
    """Rows of each group, but no more than the mean: a large group is no more groups than a small one."""
    mean = sum(map(len, groups)) / max(1, len(groups))
    return [min(float(len(group)), mean) for group in groups]


def _deal_by_weight(groups: list[Group], *, num_parts: int) -> list[list[Group]]:
    """Each group in turn goes to the part that weighs least so far."""
    parts: list[list[Group]] = [[] for _ in range(num_parts)]
    totals = [0.0] * num_parts
    for group, weight in zip(groups, _weights(groups), strict=True):
        lightest = totals.index(min(totals))
        parts[lightest].append(group)
        totals[lightest] += weight
    return parts


def _draw_in_turns(groups: list[Group], num_rows: int | None) -> list[Row]:
    """The first row of each group, then the second row of each, and so on, equally many of each label.

    `num_rows` None takes as many as the rarest label allows. Of fewer rows, a larger number only adds.
    """
    labels = _labels(groups)
    num_per_label = (_num_balanced(groups) if num_rows is None else num_rows) // len(labels)
    drawn = []
    for label in labels:
        turns = [
            (turn, place, row)
            for place, group in enumerate(groups)
            for turn, row in enumerate(row for row in group if row["label"] == label)
        ]
        turns.sort(key=lambda entry: entry[:2])
        drawn.append([row for _, _, row in turns[:num_per_label]])
    size = min(map(len, drawn))
    return [row for rows in drawn for row in rows[:size]]


def _num_balanced(groups: list[Group]) -> int:
    """How many rows can be taken with equally many of each label."""
    labels = _labels(groups)
    counts = Counter(row["label"] for group in groups for row in group)
    return min(counts[label] for label in labels) * len(labels)


def _labels(groups: list[Group]) -> list[int | None]:
    """0 and 1; one label, None, where rows have none (a generation)."""
    return [None] if all(row["label"] is None for group in groups for row in group) else [0, 1]


# --- both ----------------------------------------------------------------------------------------------------------


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
    ordered = sorted(
        groups.values(), key=lambda group: min(text_hash(f"{split_seed}:group:{row['group']}") for row in group)
    )
    names = [min(row["group"] for row in group) for group in ordered]
    return [[row | {"group": name} for row in group] for name, group in zip(names, ordered, strict=True)]


def _take_balanced(groups: list[Group], num_rows: int | None) -> tuple[list[Row], list[Group]]:
    """Rows from the front, equally many of each label, and the groups that were not touched.

    `num_rows` None takes as many rows as the rarest label allows. In a generation, whose rows have no label, all rows count
    as one label.
    """
    labels = _labels(groups)
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
