"""What it costs to learn from few groups: models of the English ladder on the truth of half B, dealt in three ways.

    python benchmarks/groups.py [--task manuals] [--sizes xs m l] [--seeds 3] [--rows 1000]

- `whole groups`: groups one after another, each with all of its rows, until half B is full. So halves were dealt in version 0.1.0.
- `in turns`: as halves are dealt now: B has its share of all groups, and takes their rows in turns.
- `all groups`: rows at random from all groups that are not in the test set, which no study can give to one half. It is the bound.

The test set is the same for all three, and a seed draws its own rows in each. The table has the mean accuracy over the seeds, with
the standard error, and how many groups the rows come from.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from w2s_ray import tasks
from w2s_ray.fit import Execution
from w2s_ray.planning import load_plan
from w2s_ray.store import open_store
from w2s_ray.training import data
from w2s_ray.training.pack import run_pack

Row = dict[str, Any]


def in_turns(groups: list[list[Row]], half_b: list[Row], *, seed: int) -> list[Row]:
    return half_b


def whole_groups(groups: list[list[Row]], half_b: list[Row], *, seed: int) -> list[Row]:
    order = np.random.default_rng(seed).permutation(len(groups))
    return balanced([row for i in order for row in groups[i]], num_rows=len(half_b))


def all_groups(groups: list[list[Row]], half_b: list[Row], *, seed: int) -> list[Row]:
    rows = [row for group in groups for row in group]
    return balanced([rows[i] for i in np.random.default_rng(seed).permutation(len(rows))], num_rows=len(half_b))


def balanced(rows: list[Row], *, num_rows: int) -> list[Row]:
    """The first rows, equally many of each label."""
    return [row for label in (0, 1) for row in [row for row in rows if row["label"] == label][: num_rows // 2]]


DEALINGS: dict[str, Callable[..., list[Row]]] = {
    "whole groups": whole_groups,
    "in turns": in_turns,
    "all groups": all_groups,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="manuals")
    parser.add_argument("--sizes", nargs="+", default=["xs", "m", "l"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1000)
    options = parser.parse_args()
    deal = tasks.deal_arranged
    with tempfile.TemporaryDirectory() as temporary:
        for size in options.sizes:
            grid = {"family": "english", "sizes": [size], "tasks": [options.task], "seeds": options.seeds}
            grid |= {"split": {"num_train": options.rows, "num_test": 2000}, "controls": False, "methods": ["naive"]}
            grid |= {"training": {"evals_per_epoch": 0, "warmup_fraction": 0.1, "max_grad_norm": 1.0}}
            path = Path(temporary) / "study.yaml"
            path.write_text(yaml.safe_dump({"name": "groups", "grids": [grid]}))
            fits = [fit for fit in load_plan(path).fits if fit.role == "ceiling"]
            for name, choose in DEALINGS.items():
                num_groups: list[int] = []

                def dealt(
                    arranged: tasks.Arranged, how: tasks.Deal, choose: Any = choose, num_groups: list[int] = num_groups
                ) -> dict[str, list[Row]]:
                    parts = deal(arranged, how)
                    _, rest = arranged.test_sets[how.num_test]
                    parts["B"] = choose(rest, parts["B"], seed=how.halves_seed or 0)
                    num_groups.append(len({row["group"] for row in parts["B"]}))
                    return parts

                data._deals.clear()
                tasks.deal_arranged = dealt
                store = open_store(str(Path(temporary) / f"{size}-{name}"))
                run_pack(fits, store_uri=store.uri, execution=Execution(), report=lambda event: None)
                tasks.deal_arranged = deal
                scores = 100 * np.array(
                    [store.read_table(fit, "curve.parquet")["test_accuracy"][-1].as_py() for fit in fits]
                )
                error = scores.std(ddof=1) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
                groups = sorted(set(num_groups))
                print(
                    f"{options.task} {size:3s} {name:13s} {scores.mean():5.1f} ± {error:.1f}   {groups[0]} to {groups[-1]} groups",
                    flush=True,
                )


if __name__ == "__main__":
    main()
