"""Without CUDA, Triton's kernels run in its interpreter, which is chosen when they are defined: before any import."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
