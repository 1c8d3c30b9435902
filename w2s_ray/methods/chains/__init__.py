"""Chains: methods that shape the DAG of Fits, by what a student learns from or starts from. One file a word.

Each file holds `Params`, `REFUSES` (where the chain makes no sense, and why), and `cell_fits`, which makes a cell's supervisor,
student and ceiling for a pair of sizes.

To add a chain, write its file and add it to the table below.
"""

from __future__ import annotations

from types import ModuleType

from w2s_ray.methods.chains import bootstrap, few_shot, generative, iterate, strong_on_a, zero_shot

CHAINS: dict[str, ModuleType] = {
    "bootstrap": bootstrap,
    "iterate": iterate,
    "generative": generative,
    "strong_on_a": strong_on_a,
    "zero_shot": zero_shot,
    "few_shot": few_shot,
}
