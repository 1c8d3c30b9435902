"""Whether every replicate of a split can be dealt, and if not, which split can. Asked before anything is trained.

Rows are arranged once for all replicates, and each replicate deals them anew: half a second for 16,000 rows and five replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from w2s_ray.errors import InputError
from w2s_ray.tasks.rows import Row
from w2s_ray.tasks.split import Arranged, Deal, PartFacts, arrange, deal_arranged, facts_of_parts

MAX_ROWS_DEALT = 400_000
"""So many rows are dealt for one split, over its first replicates: a second or two. Where all of these fit, the others do, but for
a rare one at the very limit."""
MAX_SEEDS_NAMED = 5


def facts_of_replicates(rows: list[Row], how: Deal, *, seeds: Sequence[int | None]) -> dict[str, PartFacts]:
    """Rows and groups of the first replicate's parts. Refuses a split of which a replicate can't be dealt.

    `seeds`: of the replicates' halves; [None] where all replicates share them.
    """
    arranged = arrange(rows, how)
    seeds = seeds[: max(1, MAX_ROWS_DEALT // max(1, len(rows)))]
    first: dict[str, PartFacts] = {}
    refused: dict[int | None, str] = {}
    for seed in seeds:
        try:
            parts = deal_arranged(arranged, replace(how, halves_seed=seed))
        except InputError as error:
            refused[seed] = str(error)
            continue
        first = first or facts_of_parts(parts)
    if refused:
        advice = _largest_split(arranged, how, seeds)
        raise InputError(f"{next(iter(refused.values()))}{_for_seeds(list(refused), num_seeds=len(seeds))}. {advice}")
    return first


def _for_seeds(refused: list[int | None], *, num_seeds: int) -> str:
    if refused == [None]:
        return ""
    named = ", ".join(map(str, refused[:MAX_SEEDS_NAMED])) + (", ..." if len(refused) > MAX_SEEDS_NAMED else "")
    which = "seed" if len(refused) == 1 else "seeds"
    return f" (for {which} {named}: {len(refused)} of {num_seeds})"


def _largest_split(arranged: Arranged, how: Deal, seeds: Sequence[int | None]) -> str:
    """What to ask for instead: the largest halves beside this test set, and beside one of a fifth of the rows."""

    def is_dealt(wanted: Deal, seed: int | None) -> bool:
        try:
            return bool(deal_arranged(arranged, replace(wanted, halves_seed=seed)))
        except InputError:
            return False

    def largest_half(num_test: int | None) -> int:
        """Rows of a half that every replicate can have; 0 if there is none."""
        most = arranged.num_rows // 2
        for seed in seeds:

            @cache
            def fits(num_pairs: int, seed: int | None = seed) -> bool:
                return is_dealt(replace(how, num_train=2 * num_pairs, num_test=num_test), seed)

            least, over = 0, most // 2 + 1  # a half has as many rows of label 0 as of label 1
            if fits(over - 1):
                continue
            while over - least > 1:
                middle = (least + over) // 2
                least, over = (middle, over) if fits(middle) else (least, middle)
            most = 2 * least
            if not most:
                break
        return most

    splits: dict[int | None, int] = {}
    for num_test in dict.fromkeys((how.num_test, arranged.num_rows // 5 // 2 * 2)):
        if (num_train := largest_half(num_test)) and num_train > max(splits.values(), default=0):
            splits[num_test] = num_train
    if not splits:
        return "No split of these rows can be dealt"
    described = [
        f"num_train: {num_train}" + (f", num_test: {num_test}" if num_test is not None else "")
        for num_test, num_train in splits.items()
    ]
    return f"The largest split that fits every replicate: {'; or '.join(described)}"
