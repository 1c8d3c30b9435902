"""Model families: ladders of sizes from weak to strong, as YAML entries.

`family.py` is the YAML entry and how its models are named and found, `model_folder.py` is what is read off a local model
folder, `pretraining.py` what its pretraining cost, `token_facts.py` what its tokenizer makes of a task. `catalogue/` holds
the families that ship.
"""

from w2s_ray.families.family import (
    Family,
    Size,
    family_names,
    from_models,
    load_family,
    local_folder,
    model,
    pretraining_flops,
)
from w2s_ray.families.token_facts import MAX_UNKNOWN, WARN_UNKNOWN, TokenFacts, token_facts

__all__ = [
    "MAX_UNKNOWN",
    "WARN_UNKNOWN",
    "Family",
    "Size",
    "TokenFacts",
    "family_names",
    "from_models",
    "load_family",
    "local_folder",
    "model",
    "pretraining_flops",
    "token_facts",
]
