"""torch, transformers and DeepSpeed live here and only here: batches, engine, loop, predictions, checkpoints."""

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed reads it when it is imported
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")


def _import_deepspeed() -> None:
    """Import DeepSpeed without two things that this project does not use, and that cost a worker seconds.

    DeepSpeed's tuner imports mlflow wherever that is installed. Its Muon optimizer, which every engine imports, has
    three compiled functions, and these import torch's compiler.
    """
    is_hidden, was_disabled = "mlflow" not in sys.modules, os.environ.get("TORCHDYNAMO_DISABLE")
    if is_hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # "import mlflow" fails, and DeepSpeed goes on without
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        if is_hidden:
            del sys.modules["mlflow"]
        if was_disabled is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = was_disabled


_import_deepspeed()
