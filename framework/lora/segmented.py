"""Rows grouped by adapter: two Triton launches per layer, however many adapters; on a CPU the kernels' reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from framework.kernels.arrays import IntArray
from framework.kernels.lora import lora_delta, plain_lora_delta, rows_per_tile, segments
from framework.lora.pool import LoRA


class Segmented:
    is_static = True

    def tables(self, slots: IntArray) -> IntArray:
        return segments(slots, rows_per_tile(len(slots)))

    def delta(self, x: Tensor, lora: LoRA) -> Tensor:
        return segmented_delta(x, lora.a, lora.b, lora.pool.ranks, lora.pool.tables, lora.sizes)


@torch.library.custom_op("framework::segmented_delta", mutates_args=())
def segmented_delta(x: Tensor, a: Tensor, b: Tensor, ranks: Tensor, tables: Tensor, sizes: Sequence[int]) -> Tensor:
    """See plain_lora_delta; tables may have room for more rows than x has."""
    delta = lora_delta if x.is_cuda else plain_lora_delta
    return delta(x, a, b, ranks, tables[:, : x.shape[0]], sizes)


@segmented_delta.register_fake
def _(x: Tensor, a: Tensor, b: Tensor, ranks: Tensor, tables: Tensor, sizes: Sequence[int]) -> Tensor:
    return x.new_empty(x.shape[0], b.shape[2])
