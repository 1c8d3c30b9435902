"""Dealing rows in groups: every part holds many groups, and nothing that was promised of the parts falls."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from w2s_ray.errors import InputError
from w2s_ray.tasks import Deal, deal, part_facts
from w2s_ray.tasks.rows import ROWS


def table(sizes: list[int], *, seed: int = 0, with_test_file: bool = False, has_labels: bool = True) -> pa.Table:
    """Rows in groups of these sizes, with random labels."""
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for group, size in enumerate(sizes):
        part = "test" if with_test_file and group % 4 == 0 else "train"
        for _ in range(size):
            text = f"row {len(rows)}"
            label = draw.randrange(2) if has_labels else None
            rows.append(
                {"id": f"i{len(rows)}", "text": text, "completions": [], "group": f"g{group}", "label": label,
                 "difficulty": draw.random(), "part": part}
            )  # fmt: skip
    draw.shuffle(rows)
    return pa.Table.from_pylist(rows, schema=ROWS)


def skewed(num_groups: int, seed: int) -> list[int]:
    """A few large groups and many small ones."""
    draw = random.Random(seed)
    return [min(400, int(draw.paretovariate(0.8) * 4)) for _ in range(num_groups)]


def test_every_part_holds_its_share_of_the_groups() -> None:
    sizes = [400, 300, 200, 150] + [20] * 36
    parts = deal(table(sizes), Deal(num_train=200, num_test=200))
    facts = {name: part_facts(part) for name, part in parts.items()}
    assert [facts[name].num_rows for name in ("A", "B", "test")] == [200, 200, 200]
    assert min(each.num_groups for each in facts.values()) >= 8, "40 groups over three parts"
    assert max(each.largest_group for each in facts.values()) <= 40, "no group fills a part"
    assert sum(each.num_groups for each in facts.values()) == 40, "all groups have a part"
    assert part_facts(parts["test"]).effective_groups == pytest.approx(
        200**2 / sum(n * n for n in Counter(parts["test"]["group"].to_pylist()).values())
    )


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["plain", "test file", "no labels"])
def test_what_is_promised_of_the_parts(seed: int, kind: str) -> None:
    rows = table(
        skewed(120, seed), seed=seed, with_test_file=kind == "test file", has_labels=kind != "no labels"
    )  # fmt: skip
    small, large = Deal(num_train=60, num_test=100), Deal(num_train=140, num_test=100)
    few, many = deal(rows, small), deal(rows, large)
    groups = [set(part["group"].to_pylist()) for part in many.values()]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    for name, part in many.items():
        assert part.num_rows == (100 if name == "test" else 140)
        if kind != "no labels":
            assert sum(part["label"].to_pylist()) * 2 == part.num_rows, "labels are balanced"
    assert few["test"].equals(many["test"]), "the test set stays when the halves grow"
    for half in "AB":
        assert set(few[half]["id"].to_pylist()) <= set(many[half]["id"].to_pylist()), "growing keeps the rows"
    if kind == "test file":
        assert set(many["test"]["part"].to_pylist()) == {"test"} and set(many["A"]["part"].to_pylist()) == {"train"}
    shuffled = rows.take(pa.array(random.Random(1).sample(range(rows.num_rows), rows.num_rows)))
    assert all(deal(shuffled, large)[name].equals(part) for name, part in many.items()), "the file's order is nothing"
    for seed_of_halves in (0, 1):
        anew = deal(rows, replace(large, halves_seed=seed_of_halves))
        assert anew["test"].equals(many["test"]), "the test set is common to all replicates"
        assert set(anew["A"]["id"].to_pylist()) != set(many["A"]["id"].to_pylist())
    tiny = replace(small, num_train=20)
    without, with_fresh = deal(rows, tiny), deal(rows, replace(tiny, num_fresh=1))
    assert all(with_fresh[name].equals(part) for name, part in without.items()), "fresh parts change no other"
    fresh = set(with_fresh["F1"]["group"].to_pylist())
    assert with_fresh["F1"].num_rows == 20 and not any(fresh & set(p["group"].to_pylist()) for p in without.values())
    twin = deal(rows, replace(large, is_swapped=True))
    assert twin["A"].equals(many["B"]) and twin["B"].equals(many["A"]) and twin["test"].equals(many["test"])


def test_fresh_parts_are_cut_behind_the_halves_and_refused_when_the_rows_are_spent() -> None:
    rows = table([1] * 200).set_column(3, "group", table([1] * 200)["text"])
    plain, one, two = (deal(rows, Deal(num_train=30, num_test=50, num_fresh=k)) for k in (0, 1, 2))
    assert list(two) == ["A", "B", "test", "F1", "F2"] and two["F1"].equals(one["F1"])
    for name, part in plain.items():
        assert part.equals(two[name])
    ids = [id_ for part in two.values() for id_ in part["id"].to_pylist()]
    assert len(ids) == len(set(ids)) == 170
    assert [sum(two[name]["label"].to_pylist()) for name in ("F1", "F2")] == [15, 15]
    twin = deal(rows, Deal(num_train=30, num_test=50, num_fresh=2, is_swapped=True))
    assert twin["F1"].equals(two["F1"]) and twin["A"].equals(two["B"])
    with pytest.raises(InputError, match=r"30 rows .* are wanted in F3, but only .* lower .* split.fresh"):
        deal(rows, Deal(num_train=30, num_test=50, num_fresh=4))


def test_fresh_parts_of_few_groups_are_refused() -> None:
    """Halves of more rows than groups touch all groups, and leave none."""
    with pytest.raises(InputError, match="wanted in F1, but only 0 are left"):
        deal(table([20] * 30), Deal(num_train=100, num_test=100, num_fresh=1))


def test_a_group_can_be_capped() -> None:
    parts = deal(table([300] * 6 + [20] * 60), Deal(num_train=100, num_test=200, rows_per_group=10))
    assert max(part_facts(part).largest_group for part in parts.values()) <= 10


def test_a_range_of_difficulty_limits_the_halves_alone() -> None:
    rows = table(skewed(200, 3))
    whole, easy = (deal(rows, Deal(num_train=60, num_test=100, difficulty=d)) for d in ((-9.0, 9.0), (0.0, 0.6)))
    assert whole["test"].equals(easy["test"]) and max(easy["A"]["difficulty"].to_pylist()) <= 0.6


@pytest.mark.parametrize("num_train", [40, None])
def test_rows_without_groups_are_cut_in_the_order_of_their_hash(num_train: int | None) -> None:
    """As before groups were dealt: test first, then A, then B."""
    rows = table([1] * 200).set_column(3, "group", table([1] * 200)["text"])
    parts = deal(rows, Deal(num_train=num_train, num_test=50))
    assert all(facts.num_groups == facts.num_rows for facts in map(part_facts, parts.values()))
    assert parts["test"].num_rows == 50 and parts["A"].num_rows == parts["B"].num_rows >= 40
    larger = deal(rows, Deal(num_train=60, num_test=50))
    assert parts["test"].equals(larger["test"])
