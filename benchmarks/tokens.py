"""What a worker's process takes to prepare a task, with tokens to be made and with tokens that lie on its node's disk.

    python benchmarks/tokens.py            # the tasks of quickstart and embedded
    python benchmarks/tokens.py STUDY ...

CPU seconds of reading a task's rows, tokenising or reading tokens, and arranging the rows for the dealing.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time

from w2s_ray.fit import Fit
from w2s_ray.planning import load_plan
from w2s_ray.training import data
from w2s_ray.training.token_cache import TokenCache


def seconds(fit: Fit) -> float:
    data._tokenised.clear()
    began_s = time.process_time()
    data.tokenised(fit)
    return time.process_time() - began_s


def main() -> None:
    fits: dict[tuple[str, str], Fit] = {}
    for study in sys.argv[1:] or ["quickstart", "embedded"]:
        fits |= {(fit.data.task, fit.model.tokenizer): fit for fit in load_plan(study).fits}
    print("| task | rows | tokens made, s | tokens on disk, s |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as tempfile.tempdir:
        seconds(next(iter(fits.values())))  # for the imports
        shutil.rmtree(TokenCache.of_this_node().folder)
        for (task, _), fit in fits.items():
            made_s, found_s = seconds(fit), seconds(fit)
            print(f"| {task} | {len(data.tokenised(fit).sequences):,} | {made_s:.2f} | {found_s:.2f} |")


if __name__ == "__main__":
    main()
