"""Rows grouped by adapter: two Triton launches per layer, however many adapters; on a CPU two products for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from framework.kernels.arrays import IntArray
from framework.kernels.lora import lora_delta, plain_lora_delta, rows_per_tile, segments
from framework.lora.pool import AdapterPool, LoRA


class Segmented:
    is_static = True

    def tables(self, slots: IntArray, pool: AdapterPool) -> IntArray:
        return segments(slots, rows_per_tile(len(slots)) if has_kernels(pool.slab) else None)

    def delta(self, x: Tensor, lora: LoRA) -> Tensor:
        if has_kernels(x) or torch.compiler.is_compiling():
            return segmented_delta(x, lora.a, lora.b, lora.pool.ranks, lora.pool.tables, lora.sizes)
        return grouped_delta(x, lora)


def has_kernels(x: Tensor) -> bool:
    return x.is_cuda


def grouped_delta(x: Tensor, lora: LoRA) -> Tensor:
    """plain_lora_delta with few calls: rows are brought into the order of their adapters and back once for all."""
    _, slots, _, lengths = lora.pool.on_host
    groups = {slot: length for slot, length in zip(slots, lengths, strict=True) if slot and length}
    num_rows, num_own = len(x), sum(groups.values())
    if not groups:
        return x.new_zeros(num_rows, lora.b.shape[2])
    rows = lora.pool.tables[0, num_rows - num_own : num_rows]  # those without an adapter come first
    is_one = len(groups) == 1 and num_own == num_rows
    own = (x if is_one else x[rows]).split(list(groups.values()))
    parts = [
        torch.cat([some @ part[slot][0] @ part[slot][1] for some, slot in zip(own, groups, strict=True)])
        for part in lora.by_part
    ]
    found = torch.cat(parts, dim=1)
    return found if is_one else x.new_zeros(num_rows, found.shape[1]).index_copy_(0, rows.long(), found)


@torch.library.custom_op("framework::segmented_delta", mutates_args=())
def segmented_delta(x: Tensor, a: Tensor, b: Tensor, ranks: Tensor, tables: Tensor, sizes: Sequence[int]) -> Tensor:
    """See plain_lora_delta; tables may have room for more rows than x has."""
    delta = lora_delta if x.is_cuda else plain_lora_delta
    return delta(x, a, b, ranks, tables[:, : x.shape[0]], sizes)


@segmented_delta.register_fake
def _(x: Tensor, a: Tensor, b: Tensor, ranks: Tensor, tables: Tensor, sizes: Sequence[int]) -> Tensor:
    return x.new_empty(x.shape[0], b.shape[2])
