"""Integer arrays that reach the device in one copy, each always at the same address, as a captured graph needs them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from framework.engine.torch_engine.in_flight import pinned
from framework.engine.torch_engine.upload import ALIGNMENT
from framework.kernels.arrays import IntArray

NUM_BUFFERS = 2  # steps whose inputs may be on their way from the host to the device


class Packed:
    """`on_device` has an int32 tensor of each of these shapes, by name; at first all zeros."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], device: torch.device) -> None:
        sizes = [-(-math.prod(shape) // ALIGNMENT) * ALIGNMENT for shape in shapes.values()]
        self._starts = np.cumsum([0, *sizes]).tolist()
        self._shapes = shapes
        self._all = torch.zeros(self._starts[-1], dtype=torch.int32, device=device)
        self.on_device = self._views(self._all)
        buffers = [pinned(self._starts[-1], dtype=torch.int32) for _ in range(NUM_BUFFERS)]
        self._buffers = [
            (buffer, {name: view.numpy() for name, view in self._views(buffer).items()}) for buffer in buffers
        ]
        self._num_sent = 0

    def fill(self, arrays: dict[str, IntArray]) -> None:
        """Each array becomes the first part of its tensor, along the last dimension; the rest may be anything."""
        _, views = self._buffers[self._num_sent % NUM_BUFFERS]
        for name, array in arrays.items():
            views[name][..., : array.shape[-1]] = array

    def send(self) -> None:
        """Bring what was filled in to the device, without waiting."""
        buffer, _ = self._buffers[self._num_sent % NUM_BUFFERS]
        self._num_sent += 1
        self._all.copy_(buffer, non_blocking=True)

    def _views(self, whole: Tensor) -> dict[str, Tensor]:
        return {
            name: whole[start : start + math.prod(shape)].view(shape)
            for start, (name, shape) in zip(self._starts, self._shapes.items(), strict=False)
        }
