"""predictions.parquet and half_b.parquet: folders of parquet files, the *parts*, so that a report writes what is new and nobody
has to hold all predictions in memory.

    predictions.parquet/00001.parquet     test predictions of some Fits
    half_b.parquet/00001.parquet          what the same Fits predict on half B, if anything

Polars, pandas and pyarrow read such a folder as one table, and `pl.scan_parquet` as a lazy one. In a part the rows of a Fit are
next to each other, in the order of their ids, and no two parts have rows of the same Fit.

A part's metadata has the keys of its Fits and the stamps of their commits. A part is kept as long as all of these are as they
were; else, and if it has room left when something is new, its rows are written anew with what is new. Old parts are removed
before new ones take their places: whoever is interrupted in between leaves too little, which is read again, and nothing twice.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

PREDICTIONS = {
    "key": pl.Categorical,
    "role": pl.Categorical,
    "task": pl.Categorical,
    "model": pl.Categorical,
    "seed": pl.Int32,
    "id": pl.String,
    "group": pl.String,
    "probability": pl.Float32,
    "label": pl.Int8,
    "completion": pl.String,
    "correct": pl.Boolean,
}
"""`probability` is that of label 1 in classification, and that of the first completion being the better one in comparison. In
generation it is the probability of the written `completion`, and `label` is null."""

FOLDERS = ("predictions.parquet", "half_b.parquet")
PART_ROWS = 2_000_000
"""A part with as many rows, of both tables together, is full."""


@dataclass(frozen=True)
class Part:
    name: str
    stamps: dict[str, str]
    """Key of a Fit -> stamp of its commit."""
    num_rows: int


@dataclass
class Parts:
    """The parts in `out`, and those that are being written."""

    out: Path
    version: str
    """Of the tables' meaning. Parts of another version are not read."""
    kept: list[Part] = field(default_factory=list)
    new: list[Part] = field(default_factory=list)
    waiting: dict[str, tuple[pl.DataFrame, pl.DataFrame, str]] = field(default_factory=dict)
    """Key -> rows of both tables, and the stamp, of Fits for the next part."""
    num_waiting: int = 0

    def find(self) -> list[Part]:
        """What an earlier call wrote, as far as both tables have it."""
        names = [{path.name for path in (self.out / folder).glob("*.parquet")} for folder in FOLDERS]
        parts = []
        for name in sorted(names[0] & names[1]):
            paths = [self.out / folder / name for folder in FOLDERS]
            try:
                facts = [pl.read_parquet_metadata(path) for path in paths]
                if any(each.get("w2s_tables") != self.version for each in facts):
                    continue
                stamps, num_rows = json.loads(facts[0]["w2s_fits"]), int(facts[0]["w2s_rows"])
            except (OSError, ValueError, KeyError, pl.exceptions.PolarsError):
                continue
            if facts[0]["w2s_fits"] == facts[1].get("w2s_fits"):
                parts.append(Part(name, stamps, num_rows))
        return parts

    def read(self, part: Part, table: int) -> pl.DataFrame:
        """`table`: its place in FOLDERS."""
        return pl.read_parquet(self.out / FOLDERS[table] / part.name, glob=False)

    def add(self, key: str, test: pl.DataFrame, half_b: pl.DataFrame, stamp: str) -> None:
        """A Fit of the next part."""
        self.waiting[key] = (test, half_b, stamp)
        self.num_waiting += test.height + half_b.height
        if self.num_waiting >= PART_ROWS:
            self.write()

    def write(self) -> None:
        """Write what waits, beside the folders. Where nothing waits, an empty part."""
        number = max((int(part.name[:5]) for part in (*self.kept, *self.new)), default=0) + 1
        stamps = {key: stamp for key, (_, _, stamp) in sorted(self.waiting.items())}
        part = Part(f"{number:05d}.parquet", stamps, self.num_waiting)
        facts = {
            "w2s_tables": self.version,
            "w2s_fits": json.dumps(stamps),
            "w2s_rows": str(part.num_rows),
        }
        for table in (0, 1):
            waiting = [self.waiting[key][:2][table] for key in stamps]
            pl.concat([NO_ROWS, *waiting]).write_parquet(self._beside(part, table), metadata=facts)
        self.new.append(part)
        self.waiting, self.num_waiting = {}, 0

    def finish(self) -> None:
        """Write the rest, and let the new parts take their places. There is one at least, so that a folder is a table."""
        if self.waiting or not (self.kept or self.new):
            self.write()
        kept = {part.name for part in self.kept}
        for folder in FOLDERS:
            path = self.out / folder
            if path.is_file():  # of an earlier version of this package
                path.unlink()
            path.mkdir(exist_ok=True)
            for old in path.glob("*.parquet"):
                if old.name not in kept:
                    old.unlink()
        for table, folder in enumerate(FOLDERS):
            for part in self.new:
                self._beside(part, table).replace(self.out / folder / part.name)
            for left_behind in self.out.glob(f".{folder}.*.tmp"):  # by a report that was killed
                left_behind.unlink()

    def _beside(self, part: Part, table: int) -> Path:
        return self.out / f".{FOLDERS[table]}.{part.name}.tmp"


NO_ROWS = pl.DataFrame(schema=PREDICTIONS)
