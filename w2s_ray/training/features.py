"""Features of frozen models: read by readings, looked up by the Fits that need them.

A reading writes what it has read in parts, every few seconds, and goes on from them after a kill. Promises: the features are the
same however many workers read them and wherever they were interrupted; at each depth they are those of a model that is cut there.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import torch
from safetensors.numpy import load, save

from w2s_ray.fit import Fit, Method, describe
from w2s_ray.training.batches import eval_batches
from w2s_ray.training.clock import Clock
from w2s_ray.training.data import prepare, prepare_to_read
from w2s_ray.training.distributed import broadcast, device, raise_on_all_ranks, rank, sum_rows_over_ranks, world_size
from w2s_ray.training.model import FrozenNetwork, ModelSpec
from w2s_ray.training.prompts import apply_prompt_method
from w2s_ray.training.provenance import provenance_of_reading
from w2s_ray.training.rows import PreparedTask, Rows
from w2s_ray.training.settings import setting_of
from w2s_ray.training.worker import Worker

NUM_CACHED = 2
"""Models whose features a worker keeps in memory, for neighbouring Fits."""
TELL_EVERY_S = 5.0
PART_EVERY_S = 10.0
"""Seconds of reading between two parts: what a kill costs."""


# --- looking up -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """What some readings hold for one depth."""

    place: dict[str, int]
    """Id of a row -> where it is."""
    values: np.ndarray
    """[row, sequence, width]"""

    def of(self, rows: Rows) -> np.ndarray:
        """[row, sequence, width] of these rows."""
        return self.values[[self.place[id_] for id_ in rows.ids]]


_cache: dict[tuple[Any, ...], Features] = {}


def with_features(fit: Fit, task: PreparedTask, worker: Worker) -> PreparedTask:
    """The same task with features in place of tokens, standardised over the half that the Fit learns from.

    A probe has all parts, and a transform that looks at features the half that it is about.
    """
    features, half = _features(fit, worker), fit.part.half
    own = features.of(task.parts[half])
    flat = own.reshape(-1, own.shape[-1])
    mean, spread = flat.mean(axis=0), flat.std(axis=0) + 1e-6
    names = task.parts if fit.training.tune == "head" else (half,)
    parts = {}
    for name in names:
        rows = task.parts[name]
        raw = own if name == half else features.of(rows)
        parts[name] = replace(rows, sequences=[tuple(row) for row in (raw - mean) / spread], are_features=True)
    return replace(task, parts=parts)


def _features(fit: Fit, worker: Worker) -> Features:
    """What the Fit's readings hold for its model, from this worker's memory or from the store."""
    depth, store = fit.model.depth, worker.store
    name = (depth, *(reading.key for reading in fit.readings))
    if name not in _cache:
        while len(_cache) >= NUM_CACHED:
            _cache.pop(next(iter(_cache)))
        ids: list[str] = []
        values = []
        for reading in fit.readings:
            ids += store.read_table(reading, "rows.parquet").column("id").to_pylist()
            values.append(load(store.read_file(store.folder_of(reading), _file_of(depth)))["features"])
        place = {id_: number for number, id_ in enumerate(ids)}
        _cache[name] = Features(place, np.concatenate([each for each in values if len(each)]))
    return _cache[name]


def _file_of(depth: int | None) -> str:
    return "features.safetensors" if depth is None else f"features-{depth}.safetensors"


# --- reading ----------------------------------------------------------------------------------------------------------


def read_features(fit: Fit, worker: Worker, *, scratch: Path) -> Clock:
    """The life of a reading."""
    clock, depths = Clock(), dict(fit.method.params)["depths"]
    with clock.phase("load"), raise_on_all_ranks():
        task = _prepare(fit, worker)
        network = FrozenNetwork(ModelSpec.of(fit, execution=worker.execution), depths)
    with clock.phase("features"):
        reader = Reader(fit, task, network, worker)
        features = reader.read()
        clock.is_resumed = reader.num_taken_up > 0
    with clock.phase("commit"), raise_on_all_ranks():
        if rank() == 0:
            files = scratch / "files"
            files.mkdir()
            ids = [id_ for _, rows in sorted(task.parts.items()) for id_ in rows.ids]
            pq.write_table(pa.table({"id": pa.array(ids, pa.string())}), files / "rows.parquet")
            for depth, values in zip(depths, features, strict=True):
                (files / _file_of(depth)).write_bytes(save({"features": values}))
            facts = describe(fit) | {"provenance": provenance_of_reading(fit, task, worker.execution, clock)}
            (files / "fit.json").write_text(json.dumps(facts, indent=1))
            worker.check_lease()
            worker.store.commit(fit, files)
    return clock


def _prepare(fit: Fit, worker: Worker) -> PreparedTask:
    """The rows to read. Where labels stand in the texts, those of the one Fit that this reading is for."""
    if not fit.labels:
        return prepare_to_read(fit)
    return apply_prompt_method(replace(fit, method=Method("told")), prepare(fit), worker.store)


@dataclass(frozen=True)
class Batch:
    rows: Rows
    """All rows of a part of the task."""
    chosen: list[int]
    """Which of them are read together."""
    places: list[int]
    """Where their features belong, among those of all parts."""


class Reader:
    """Reads the batches of a reading, each once, whichever worker does it and however often that is interrupted."""

    def __init__(self, fit: Fit, task: PreparedTask, network: FrozenNetwork, worker: Worker) -> None:
        self.fit = fit
        self.pad_id = task.pad_id
        self.network = network
        self.worker = worker
        self.num_taken_up = 0
        """Batches that an earlier try has read."""
        self.batches: list[Batch] = []
        self.num_rows = 0
        for _, rows in sorted(task.parts.items()):
            for chosen in eval_batches(rows) if len(rows) else ():
                self.batches.append(Batch(rows, chosen, [self.num_rows + i for i in chosen]))
            self.num_rows += len(rows)
        self.values: list[np.ndarray] = []
        """For each depth [row, sequence, width]: what this worker has read, and zeros."""

    @torch.no_grad()
    def read(self) -> list[np.ndarray]:
        """For each depth the features of all rows."""
        if not self.batches:
            return [np.zeros((0, 1, 1), np.float32)] * len(self.network.depths)
        read = broadcast(self._take_up_parts())
        self.num_taken_up = len(read)
        left = [number for number in range(len(self.batches)) if number not in read]
        unwritten: list[int] = []
        wrote_s = told_s = time.monotonic()
        num_read = sum(len(self.batches[number].chosen) for number in read)
        for number in left[rank() :: world_size()]:
            self._put(number, self._features_of(self.batches[number]))
            unwritten.append(number)
            num_read += len(self.batches[number].chosen)
            now_s, is_leaving = time.monotonic(), False
            if world_size() == 1 and now_s - told_s >= TELL_EVERY_S:  # with more ranks a report needs all of them
                event = {"event": "features", "key": self.fit.key, "share_read": num_read / self.num_rows}
                is_leaving, told_s = bool(self.worker.report(event)), now_s
            if is_leaving or now_s - wrote_s >= PART_EVERY_S:
                self._write_part(unwritten)
                unwritten, wrote_s = [], now_s
        own = [torch.from_numpy(values).to(device()) for values in self.values]
        each_depth: list[torch.Tensor | None] = [*own] if own else [None for _ in self.network.depths]
        # a rank may have had nothing to read
        return [sum_rows_over_ranks(values, self.num_rows).cpu().numpy() for values in each_depth]

    def _features_of(self, batch: Batch) -> list[np.ndarray]:
        """For each depth [row, sequence, width] of a batch."""
        inputs: tuple[Any, ...] = setting_of(self.fit).collate(batch.rows, batch.chosen, pad_id=self.pad_id)[0]
        flat = self.network.features(*inputs)
        return [each.view(-1, len(batch.chosen), each.shape[-1]).transpose(0, 1).cpu().numpy() for each in flat]

    def _put(self, number: int, features: list[np.ndarray]) -> None:
        if not self.values:
            self.values = [np.zeros((self.num_rows, *each.shape[1:]), np.float32) for each in features]
        for values, each in zip(self.values, features, strict=True):
            values[self.batches[number].places] = each

    # --- parts ---

    def _write_part(self, numbers: list[int]) -> None:
        """Keep batches that this worker has read."""
        self.worker.check_lease()
        places = [place for number in numbers for place in self.batches[number].places]
        tensors = {str(i): values[places] for i, values in enumerate(self.values)}
        content = save(tensors | {"batches": np.array(numbers, dtype=np.int64)})
        self.worker.store.write_part(self.fit, f"part-{numbers[0]:06d}.safetensors", content)

    def _take_up_parts(self) -> set[int]:
        """The batches that an earlier try has read, which go to rank 0. What can't be read back whole is read anew."""
        read: set[int] = set()
        for content in self.worker.store.read_parts(self.fit) if rank() == 0 else ():
            try:
                part = load(content)
                numbers = [int(number) for number in part.pop("batches")]
                ends = np.cumsum([len(self.batches[number].chosen) for number in numbers])
                pieces = [np.split(part[str(i)], ends[:-1]) for i in range(len(self.network.depths))]
                for number, features in zip(numbers, zip(*pieces, strict=True), strict=True):
                    self._put(number, list(features))
                read |= set(numbers)
            except (safetensors.SafetensorError, KeyError, IndexError, ValueError):
                continue
        return read
