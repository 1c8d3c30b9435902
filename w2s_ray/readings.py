"""Readings: what Fits need to know of a frozen model, read off it before they run.

Linear probes learn from features of a frozen model, and some transforms of labels look at them. A *reading* is a Fit that trains
nothing: it reads rows of a task with a frozen model and is committed with their features. So it is planned, leased, resumed and
shown like any other Fit, and no row is read twice:

- Models that are one network cut at several depths are one reading: a pass of the deepest gives the features at every depth.
- The test set is a reading of its own, since all replicates share it.
- The halves are one reading for each replicate. It leaves out the rows that the replicates before it have. A Fit therefore stands
  on the readings of its own replicate and of those before it. None of these waits for another, so the slots share them; and when
  seeds are added at the end of a study, the readings that are there keep their keys. Of many seeds, each `MAX_TOGETHER` begin
  anew, so that no Fit stands on more than that.
- A long reading is several, each of a share of the rows, so that slots can work on it at the same time.
- Where a method writes labels into the texts (`told`), the texts of each Fit are its own, and so is its reading.

What a Fit reads is never part of its identity. A reading's own identity is the network and its depths, the rows and the
precision.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from w2s_ray.fit import FEATURES, Data, Fit, Method, Model, Training

UNTOUCHED = Training(
    epochs=0,
    batch_size=1,
    learning_rate=0.0,
    optimizer="adam",
    weight_decay=0.0,
    warmup_fraction=0.0,
    schedule="constant",
    max_grad_norm=0.0,
    precision="fp32",
    evals_per_epoch=0,
    tune="head",
)
"""How a reading trains: not at all."""


MAX_TOGETHER = 32
"""Replicates that share what they read."""
SHARE_FLOPS, MOST_SHARES = 5e13, 8
"""What a share of a reading takes at most if all rows are as long as they may be: minutes on a core, a second on a GPU. Beyond
`MOST_SHARES` the shares get larger."""
ROWS_OF_WHOLE_PART = 20_000
"""Assumed of a half or test set whose size the study leaves open."""


Precision = Literal["fp32", "bf16"]

Share = tuple[int, int]
"""(number, count): share k of n reads rows k, k + n, k + 2n, ... of each part."""


@dataclass(frozen=True)
class Network:
    """One network, and where the models of a grid cut it."""

    deepest: Model
    depths: tuple[int | None, ...]
    """From shallow to deep. None stands for the whole network."""


@dataclass(frozen=True)
class Replicate:
    """Whose halves are read: a replicate, and the seeds of those before it with which it shares what is read."""

    data: Data
    earlier: tuple[int, ...] = ()
    num_fresh: int = 0
    """Fresh parts that the grid deals for the steps of chains."""


def earlier_seeds(seeds: tuple[int, ...], number: int) -> tuple[int, ...]:
    """Of the replicates with which a replicate, by its number, shares what is read."""
    return seeds[number - number % MAX_TOGETHER : number]


def networks(models: dict[str, Model]) -> dict[str, Network]:
    """Size -> the network that it is, or is cut from."""
    cuts: dict[tuple[str, str, str], list[Model]] = {}
    for model in models.values():
        cuts.setdefault((model.fingerprint, model.tokenizer, model.pooling), []).append(model)
    found: dict[str, Network] = {}
    for same in cuts.values():
        same.sort(key=lambda model: (model.depth is None, model.depth or 0))
        network = Network(same[-1], tuple(dict.fromkeys(model.depth for model in same)))
        found |= {model.size: network for model in same}
    return found


def readings_of(network: Network, replicate: Replicate, precision: Precision, *, is_probe: bool) -> tuple[Fit, ...]:
    """The readings that a Fit stands on. Only a probe reads the test set: a transform looks at what it learns from."""
    halves = _readings_of_halves(network, replicate, precision)
    return (*_readings_of_test(network, replicate.data, precision), *halves) if is_probe else halves


def readings_of_told(model: Model, data: Data, labels: tuple[Fit, ...], precision: Precision) -> tuple[Fit, ...]:
    """The reading of a probe whose texts have labels in them: its own."""
    return (_reading(Network(model, (model.depth,)), data, "told", precision, labels=labels),)


@cache
def _readings_of_halves(network: Network, replicate: Replicate, precision: Precision) -> tuple[Fit, ...]:
    """Of all replicates up to this one."""
    data = replace(replicate.data, is_swapped=False, num_fresh=replicate.num_fresh)
    num_rows = (2 + data.num_fresh) * (data.num_train or ROWS_OF_WHOLE_PART)
    found: list[Fit] = []
    for number, seed in enumerate((*replicate.earlier, data.halves_seed)):
        if number and data.num_train is None:
            num_rows = 0  # the first replicate has read every row
        of_seed, earlier = replace(data, halves_seed=seed), replicate.earlier[:number]
        for share in _shares(network, num_rows, data.max_tokens):
            found.append(_reading(network, of_seed, "halves", precision, earlier=earlier, share=share))
    return tuple(found)


@cache
def _readings_of_test(network: Network, data: Data, precision: Precision) -> tuple[Fit, ...]:
    of_all = replace(data, halves_seed=None, is_swapped=False, num_train=None, difficulty=None, num_fresh=0)
    shares = _shares(network, data.num_test or ROWS_OF_WHOLE_PART, data.max_tokens)
    return tuple(_reading(network, of_all, "test", precision, share=share) for share in shares)


def _shares(network: Network, num_rows: int, row_tokens: int) -> list[Share | None]:
    """The shares of a reading of at most so many rows; None stands for the whole."""
    flops = 2.0 * network.deepest.num_params * num_rows * row_tokens
    count = min(math.ceil(flops / SHARE_FLOPS), MOST_SHARES)
    return [(number, count) for number in range(1, count + 1)] if count > 1 else [None]


@cache
def _reading(
    network: Network,
    data: Data,
    half: str,
    precision: Precision,
    *,
    labels: tuple[Fit, ...] = (),
    earlier: tuple[int, ...] = (),
    share: Share | None = None,
) -> Fit:
    of_share = (("share", share),) if share else ()
    method = Method(FEATURES, (("depths", network.depths), *of_share, ("without", earlier)))
    return Fit(network.deepest, data, half, labels, method, _untouched(precision), seed=data.halves_seed or 0)


@cache
def _untouched(precision: Precision) -> Training:
    return replace(UNTOUCHED, precision=precision)


def unneeded(fits: Iterable[Fit], done: Collection[str]) -> set[str]:
    """The keys of readings whose every dependent is done: nobody will look at them."""
    all_readings, needed = set[str](), set[str]()
    for fit in fits:
        if fit.readings:
            keys = {reading.key for reading in fit.readings}
            all_readings |= keys
            if fit.key not in done:
                needed |= keys
    return all_readings - needed
