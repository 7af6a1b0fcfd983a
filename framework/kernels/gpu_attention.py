"""Attention on a GPU in half precision: FlashAttention for prompts and chunks, the Triton kernel for decode steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from framework.kernels.arrays import IntArray
from framework.kernels.attention import Heads, cache_slots
from framework.kernels.layer_cache import LayerCache, read_cache
from framework.kernels.paged_decode import paged_decode
from framework.kernels.rope_store import rope_store

NO_WINDOW = "only plain attention has sliding windows"
FLASH_DTYPES = (torch.float16, torch.bfloat16)


def is_supported(head_dim: int, kv_dtype: torch.dtype, has_window: bool) -> bool:
    """Whether the kernels take heads of this size, with a cache of this kind; none has sliding windows."""
    return not has_window and head_dim in (16, 32, 64, 128) and not (head_dim == 16 and kv_dtype == torch.int8)


@dataclass(frozen=True, slots=True)
class FlashAttention:
    """Prompts and chunks of prompts through the FlashAttention-2 that ships with torch (arXiv:2307.08691).

    Without `read_slots` every segment attends to its own fresh keys; with them, to its whole context in the cache.
    """

    slots: Tensor | None  # (num_tokens,) int32, cache slot of every new token; None: nothing is written
    query_starts: Tensor  # (num_segments + 1,) int32, first row of every segment, and the end
    key_starts: Tensor  # (num_segments + 1,) int32
    max_query_len: int
    max_key_len: int
    read_slots: Tensor | None  # (sum of context lengths,) int32

    def __call__(
        self,
        qkv: Tensor,
        rope: Tensor | None,
        cache: LayerCache | None,
        window: int | None,
        **heads: Unpack[Heads],
    ) -> Tensor:
        """See Attention; `qkv` may be overwritten."""
        assert window is None, NO_WINDOW
        q, k, v = rope_store(qkv, rope, self.slots, cache, **heads)
        if self.read_slots is not None:
            assert cache is not None, "no KV cache is attached to the model"
            k, v = read_cache(cache, self.read_slots, q.dtype)
        starts, lens = (self.query_starts, self.key_starts), (self.max_query_len, self.max_key_len)
        flash = torch.ops.aten._flash_attention_forward
        return flash(q, k, v, *starts, *lens, 0.0, True, False, scale=q.shape[-1] ** -0.5)[0].flatten(1)


@dataclass(frozen=True, slots=True)
class DecodeAttention:
    """One new token per row, whose lengths and blocks are read on the device: a captured graph can be replayed."""

    tables: Tensor  # (num_seats, max_blocks) int32
    seats: Tensor  # (rows,) int32, the row of `tables` of each sequence
    context_lens: Tensor  # (rows,) int32, with the new token; 0: an empty row
    padding: Tensor  # (rows,) int32
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
        assert window is None, NO_WINDOW
        assert cache is not None, "no KV cache is attached to the model"
        rows = (self.tables, self.seats, self.context_lens, self.padding)
        return paged_decode(qkv, rope, *rows, cache, block_size=self.block_size, **heads)


def flash_inputs(
    query_lens: IntArray, context_lens: IntArray, padding: IntArray, block_tables: IntArray | None, block_size: int
) -> tuple[dict[str, IntArray], tuple[int, int]]:
    """What FlashAttention needs on the device, by name, and its longest query and key.

    The pads of a whole prompt are a segment of their own, which nobody else attends to.
    """
    arrays = {}
    query_segments = key_segments = query_lens
    if block_tables is not None:
        arrays["slots"] = cache_slots(query_lens, context_lens, block_tables, block_size)
    if (query_lens == context_lens).all():
        pieces = np.stack((padding, query_lens - padding), axis=1).ravel()
        query_segments = key_segments = pieces[pieces > 0]
    else:
        assert block_tables is not None, "without a KV cache every slot is computed anew"
        assert not padding.any(), "a padded prompt is computed in one step"
        key_segments = context_lens
        arrays["read_slots"] = cache_slots(context_lens, context_lens, block_tables, block_size)
    arrays["query_starts"] = np.concatenate(([0], np.cumsum(query_segments)))
    arrays["key_starts"] = np.concatenate(([0], np.cumsum(key_segments)))
    return arrays, (int(query_segments.max()), int(key_segments.max()))


def flash_attention(sent: dict[str, Tensor], max_query_len: int, max_key_len: int) -> FlashAttention:
    """From the arrays of `flash_inputs`, on the device."""
    starts = (sent["query_starts"], sent["key_starts"])
    return FlashAttention(sent.get("slots"), *starts, max_query_len, max_key_len, sent.get("read_slots"))
