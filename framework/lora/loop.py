"""One adapter after the other, in Python (lesson 6 of "Efficiently Serving LLMs"): the time grows with their number."""

from __future__ import annotations

from torch import Tensor

from framework.kernels.arrays import IntArray
from framework.kernels.lora import adapter_delta, segments
from framework.lora.pool import AdapterPool, LoRA


class Loop:
    is_static = False  # which adapters there are decides what is launched

    def tables(self, slots: IntArray, pool: AdapterPool) -> IntArray:
        return segments(slots, block_m=None)

    def delta(self, x: Tensor, lora: LoRA) -> Tensor:
        delta = x.new_zeros(x.shape[0], lora.b.shape[2])
        for slot, start, length in zip(*lora.pool.on_host[1:], strict=True):
            if slot and length:
                rows = lora.pool.tables[0, start : start + length]
                delta[rows] = adapter_delta(x[rows], lora.a[slot], lora.b[slot], lora.sizes)
        return delta
