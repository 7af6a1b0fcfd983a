"""Attention on a GPU: decode steps and steps with prompts over the paged cache, and prompts without a cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from framework.kernels.arrays import IntArray
from framework.kernels.attention import Heads
from framework.kernels.layer_cache import LayerCache
from framework.kernels.paged_decode import paged_decode, paged_decode_items
from framework.kernels.paged_prefill import paged_prefill
from framework.kernels.rope_store import rope_store

FLASH_DTYPES = (torch.float16, torch.bfloat16)


def is_supported(head_dim: int, kv_dtype: torch.dtype) -> bool:
    """Whether the kernels take heads of this size, with a cache of this kind."""
    return head_dim in (16, 32, 64, 128) and not (head_dim == 16 and kv_dtype == torch.int8)


@dataclass(frozen=True, slots=True)
class FlashAttention:
    """Whole prompts of which nothing is kept, through the FlashAttention-2 that ships with torch (arXiv:2307.08691).

    Each is a segment, and so are its pads, which nobody else attends to.
    """

    starts: Tensor  # (num_segments + 1,) int32, first row of every segment, and the end
    longest: int  # segment

    def __call__(
        self,
        qkv: Tensor,
        rope: Tensor | None,
        cache: LayerCache | None,
        window: int | None,
        **heads: Unpack[Heads],
    ) -> Tensor:
        """See Attention."""
        assert window is None, "FlashAttention-2 as torch has it knows no window"
        q, k, v = rope_store(qkv, rope, None, None, **heads)
        segments = (self.starts, self.starts, self.longest, self.longest)
        flash = torch.ops.aten._flash_attention_forward
        return flash(q, k, v, *segments, 0.0, True, False, scale=q.shape[-1] ** -0.5)[0].flatten(1)


@dataclass(frozen=True, slots=True)
class DecodeAttention:
    """One new token per row, whose lengths and blocks are read on the device: a captured graph can be replayed."""

    tables: Tensor  # (num_seats, max_blocks) int32
    seats: Tensor  # (rows,) int32, the row of `tables` of each sequence
    context_lens: Tensor  # (rows,) int32, with the new token; 0: an empty row
    padding: Tensor  # (rows,) int32
    block_size: int
    plan: Tensor | None  # choose_plan's of these context_lens: every layer reads the same

    def __call__(
        self,
        qkv: Tensor,
        rope: Tensor | None,
        cache: LayerCache | None,
        window: int | None,
        **heads: Unpack[Heads],
    ) -> Tensor:
        """See Attention."""
        assert cache is not None, "no KV cache is attached to the model"
        rows = (self.tables, self.seats, self.context_lens, self.padding)
        kernel = partial(paged_decode, block_size=self.block_size, window=window, plan=self.plan)
        return kernel(qkv, rope, *rows, cache, **heads)


@dataclass(frozen=True, slots=True)
class MixedAttention:
    """Rows that decode, then rows of prompts and of chunks, over the paged cache; a captured graph can be replayed.

    All that it knows of the batch is read on the device: see decode_items and prefill_tiles.
    """

    tables: Tensor  # (num_seats, max_blocks) int32
    slots: Tensor  # (rows,) int32, the cache slot of every row of a prompt; -1 for others
    seats: Tensor  # (most rows that decode,) int32; this and the next two are as DecodeAttention's
    context_lens: Tensor
    padding: Tensor
    items: Tensor  # (3, any) int32
    num_items: Tensor  # (1,) int32
    tiles: Tensor  # (5, any) int32
    num_tiles: Tensor  # (1,) int32
    block_size: int

    def __call__(
        self,
        qkv: Tensor,
        rope: Tensor | None,
        cache: LayerCache | None,
        window: int | None,
        **heads: Unpack[Heads],
    ) -> Tensor:
        """See Attention."""
        assert cache is not None, "no KV cache is attached to the model"
        num_heads = qkv.shape[1] - 2 * heads["num_kv_heads"]
        output = torch.empty((len(qkv), num_heads * qkv.shape[2]), dtype=qkv.dtype, device=qkv.device)
        block_size = self.block_size
        num = len(self.seats)
        if num:
            first = (qkv[:num], None if rope is None else rope[:num])
            rows = (self.tables, self.seats, self.context_lens, self.padding, self.items, self.num_items)
            paged_decode_items(*first, *rows, cache, output, block_size=block_size, window=window, **heads)
        q, _, _ = rope_store(qkv, rope, self.slots, cache, **heads)
        paged_prefill(q, self.tables, self.tiles, self.num_tiles, cache, output, block_size=block_size, window=window)
        return output


def flash_segments(query_lens: IntArray, padding: IntArray) -> tuple[IntArray, int]:
    """Where the segments of whole prompts start, and the end; and the longest one's length."""
    pieces = np.stack((padding, query_lens - padding), axis=1).ravel()
    segments = pieces[pieces > 0]
    return np.concatenate(([0], np.cumsum(segments))), int(segments.max())
