"""torch, transformers and DeepSpeed live here and only here: batches, engine, loop, predictions, checkpoints."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed reads it when it is imported
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
