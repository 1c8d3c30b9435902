"""Model families: ladders of sizes from weak to strong, as YAML entries.

`family.py` is the YAML entry and how its models are named and found, `model_folder.py` is what is read off a local model
folder, `pretraining.py` what its pretraining cost. `catalogue/` holds the families that ship.
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

__all__ = [
    "Family",
    "Size",
    "family_names",
    "from_models",
    "load_family",
    "local_folder",
    "model",
    "pretraining_flops",
]
