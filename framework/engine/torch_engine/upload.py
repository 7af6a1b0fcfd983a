"""Many small integer arrays to the device in one copy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from framework.engine.torch_engine.in_flight import pinned
from framework.kernels.arrays import IntArray

ALIGNMENT = 4  # numbers, 16 bytes: Triton compiles a kernel anew for pointers aligned otherwise


def upload(device: torch.device, arrays: dict[str, IntArray]) -> dict[str, Tensor]:
    """Each array as a flat int32 tensor on the GPU, through pinned memory and without waiting."""
    starts = np.cumsum([0, *(-(-array.size // ALIGNMENT) * ALIGNMENT for array in arrays.values())]).tolist()
    packed = pinned(starts[-1], dtype=torch.int32)
    for start, array in zip(starts, arrays.values(), strict=False):
        packed.numpy()[start : start + array.size] = array.ravel()
    on_device = packed.to(device, non_blocking=True)
    return {
        name: on_device[start : start + array.size]
        for start, (name, array) in zip(starts, arrays.items(), strict=False)
    }
