"""torch, transformers and DeepSpeed live here and only here: batches, engine, loop, predictions, checkpoints."""

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed reads it when it is imported
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")


def _import_deepspeed_without_mlflow() -> None:
    """DeepSpeed's tuner, which this project does not use, imports mlflow wherever that is installed. That is four fifths of
    the time of DeepSpeed's import."""
    is_hidden = "mlflow" not in sys.modules
    if is_hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # "import mlflow" fails, and DeepSpeed goes on without
    try:
        import deepspeed  # noqa: F401
    finally:
        if is_hidden:
            del sys.modules["mlflow"]


_import_deepspeed_without_mlflow()
