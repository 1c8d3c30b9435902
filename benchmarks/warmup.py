"""Do warm-up, clipping of gradients or a random head help a Fit? Ceilings of shipped models on the truth, without and with each.

`python benchmarks/warmup.py [--task chess-moves] [--family chess] [--sizes m l] [--rates 1 2] [--seeds 5]`. `--rates` are multiples
of the family's rate. A row of the table has the mean score over the seeds, and the mean difference from the defaults at the
same rate and seed, with its standard error: a seed deals the same rows and the same order to every variant.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import nn

from w2s_ray.fit import Execution, Fit
from w2s_ray.planning import load_plan
from w2s_ray.store import open_store
from w2s_ray.training.model import ModelSpec
from w2s_ray.training.pack import run_pack
from w2s_ray.training.settings import classification

VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "warm-up 10 %": {"warmup_fraction": 0.1},
    "clipped to 1": {"max_grad_norm": 1.0},
    "both": {"warmup_fraction": 0.1, "max_grad_norm": 1.0},
    "both, head from N(0, 0.02)": {"warmup_fraction": 0.1, "max_grad_norm": 1.0},
}


def ceilings(grid: dict[str, Any], folder: Path) -> list[Fit]:
    """The Fits of the largest size of a grid that learn from the truth of half B, one for each seed."""
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"name": "warmup", "grids": [grid | {"controls": False, "methods": ["naive"]}]}))
    return sorted((fit for fit in load_plan(path).fits if fit.role == "ceiling"), key=lambda fit: fit.seed)


def scores(fits: Sequence[Fit], folder: Path) -> np.ndarray:
    """Accuracy of each Fit on the test set, trained in this process."""
    store = open_store(str(folder))
    run_pack(list(fits), store_uri=store.uri, execution=Execution(), report=lambda event: None)
    if failures := store.read_failures():
        raise SystemExit(f"a Fit failed: {failures}")
    return np.array([store.read_table(fit, "curve.parquet")["test_accuracy"][-1].as_py() for fit in fits])


@contextmanager
def random_head() -> Iterator[None]:
    """Within the block classifiers start from random heads, in place of the output embeddings of "0" and "1", or zeros."""
    build = classification.build_model

    def built(spec: ModelSpec) -> tuple[nn.Module, str]:
        model: Any = build(spec)[0]
        nn.init.normal_(model.head.weight, std=0.02)
        return model, "N(0, 0.02)"

    classification.build_model = built
    try:
        yield
    finally:
        classification.build_model = build


def row(scored: np.ndarray, defaults: np.ndarray) -> str:
    differences = 100 * (scored - defaults)
    error = differences.std(ddof=1) / len(differences) ** 0.5
    return f"{100 * scored.mean():6.2f}  {differences.mean():+6.2f} ± {error:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="chess-moves")
    parser.add_argument("--family", default="chess")
    parser.add_argument("--sizes", nargs="+", default=["m", "l"])
    parser.add_argument("--rates", nargs="+", type=float, default=[1, 2])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for size in options.sizes:
            grid = {"family": options.family, "sizes": [size], "tasks": [options.task], "seeds": options.seeds}
            grid |= {"split": {"num_train": options.rows, "num_test": 2000}}
            grid |= {"training": {"max_tokens": 64, "evals_per_epoch": 1}}
            fits = ceilings(grid, folder)
            for rate in options.rates:
                defaults = None
                for name, changes in VARIANTS.items():
                    changed = changes | {"learning_rate": rate * fits[0].training.learning_rate}
                    changed_fits = [replace(fit, training=replace(fit.training, **changed)) for fit in fits]
                    with random_head() if "head" in name else nullcontext():
                        scored = scores(changed_fits, folder / f"store of {name}")
                    defaults = scored if defaults is None else defaults
                    print(
                        f"{options.task} {size}, rate {changed['learning_rate']:g}  {name:27}{row(scored, defaults)}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
