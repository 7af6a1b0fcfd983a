"""Many small integer arrays to the device in one copy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from framework.engine.in_flight import pinned
from framework.kernels.attention import IntArray


def upload(device: torch.device, arrays: dict[str, IntArray]) -> dict[str, Tensor]:
    """Each array as a flat int32 tensor on the GPU, through pinned memory and without waiting."""
    sizes = [array.size for array in arrays.values()]
    packed = pinned(sum(sizes), dtype=torch.int32)
    np.concatenate([array.ravel() for array in arrays.values()], out=packed.numpy(), casting="same_kind")
    parts = packed.to(device, non_blocking=True).split(sizes)
    return dict(zip(arrays, parts, strict=True))
