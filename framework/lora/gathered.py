"""Every row takes a copy of its adapter, then all multiply at once (lesson 6 of "Efficiently Serving LLMs").

A decode step is the lesson's. In a prompt every token takes a copy, where the lesson's padded batch has one per
sequence: rows here are flattened, and grouping them is what `segmented` is for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from framework.kernels.arrays import IntArray
from framework.lora.pool import LoRA

MAX_GATHERED_BYTES = 2**28  # of A and B copied out for one batched product; more rows take several


class Gathered:
    is_static = True

    def tables(self, slots: IntArray) -> IntArray:
        return slots[None]

    def delta(self, x: Tensor, lora: LoRA) -> Tensor:
        return gathered_delta(x, lora.a, lora.b, lora.pool.tables, lora.sizes)


@torch.library.custom_op("framework::gathered_delta", mutates_args=())
def gathered_delta(x: Tensor, a: Tensor, b: Tensor, tables: Tensor, sizes: Sequence[int]) -> Tensor:
    """See plain_lora_delta; tables (1, at least rows) are the rows' slots, whose ranks beyond an adapter's are zero."""
    bytes_per_row = (a[0].numel() + b[0].numel()) * a.itemsize
    num_rows = max(1, MAX_GATHERED_BYTES // bytes_per_row)
    slots = tables[0, : x.shape[0]].split(num_rows)
    deltas = [_gathered(rows, a, b, some, sizes) for rows, some in zip(x.split(num_rows), slots, strict=True)]
    return torch.cat(deltas)


@gathered_delta.register_fake
def _(x: Tensor, a: Tensor, b: Tensor, tables: Tensor, sizes: Sequence[int]) -> Tensor:
    return x.new_empty(x.shape[0], b.shape[2])


def _gathered(x: Tensor, a: Tensor, b: Tensor, slots: Tensor, sizes: Sequence[int]) -> Tensor:
    own_a, own_b = a.index_select(0, slots), b.index_select(0, slots)
    hidden = torch.bmm(own_a.flatten(1, 2), x[:, :, None]).view(own_a.shape[:3])  # (rows, max_rank, parts)
    parts = zip(hidden.transpose(1, 2).split(1, dim=1), own_b.split(list(sizes), dim=2), strict=True)
    return torch.cat([torch.bmm(one_hidden, one_b)[:, 0] for one_hidden, one_b in parts], dim=1)
