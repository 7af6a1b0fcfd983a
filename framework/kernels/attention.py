"""Attention over a paged KV cache for a flattened ragged batch: what every implementation does, and plain PyTorch's.

Sequences with equally many new tokens share one scaled_dot_product_attention call; what depends on the batch alone
(cache slots to read, masks) is built once per step and shared by all layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypedDict, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from framework.kernels.arrays import IntArray
from framework.kernels.layer_cache import LayerCache
from framework.kernels.rope_store import plain_rope_store

MAX_SPREAD = 4  # one call pads its contexts to the longest, at most this many times the shortest
MAX_GATHERED_SLOTS = 2**18  # cache slots copied out in one call: 1 GiB with 8 KV heads of 128 channels in bfloat16
MAX_MASK_ENTRIES = 2**27  # query-key pairs of one call: with 4 query heads per KV head, 1 GiB in bfloat16


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Sequences attended in one call: `batch_size` of them with `query_len` new tokens each."""

    batch_size: int
    query_len: int
    rows: Tensor | None  # (batch_size * query_len,) rows in the flattened batch; None: all rows, in order
    slots: Tensor | None  # (batch_size * key_len,) cache slots to read; None: this step's own keys, key_len = query_len
    mask: Tensor | None  # (batch_size, 1, 1 or num_queries_per_kv * query_len, key_len), added to the scores
    is_causal: bool  # whole prompts without padding need no mask


class Heads(TypedDict):
    """How a layer's heads are laid out and normed; the norms' weights are (head_dim,), None: no norm."""

    num_kv_heads: int
    q_norm: Tensor | None
    k_norm: Tensor | None
    norm_eps: float


class Attention(Protocol):
    """One step's attention, called by every layer: what it knows of the batch is the same for all of them."""

    def __call__(
        self,
        qkv: Tensor,
        rope: Tensor | None,
        cache: LayerCache | None,
        window: int | None,
        **heads: Unpack[Heads],
    ) -> Tensor:
        """Norm and turn q and k, write k and v to the cache, attend causally to each sequence's context.

        A query sees the last `window` slots, its own included; None: all of them.

        qkv is (num_tokens, num_heads + 2 num_kv_heads, head_dim), the heads of q, k and v in this order; rope
        (num_tokens, 2, head_dim) or None. Query head h reads key head h // (num_heads / num_kv_heads). Scores are
        scaled by head_dim ** -0.5. Returns (num_tokens, num_heads * head_dim).
        """


@dataclass(frozen=True, slots=True)
class PlainAttention:
    """Attention in plain PyTorch: any device, any dtype."""

    slots: Tensor | None  # (num_tokens,) cache slot of every new token; None: nothing is written
    groups: dict[int | None, list[AttentionGroup]]  # by the layers' windows

    def __call__(
        self,
        qkv: Tensor,
        rope: Tensor | None,
        cache: LayerCache | None,
        window: int | None,
        **heads: Unpack[Heads],
    ) -> Tensor:
        q, k, v = plain_rope_store(qkv, rope, self.slots, cache, **heads)
        return attend(q, k, v, cache, self.groups[window]).flatten(1)


def attend(q: Tensor, k: Tensor, v: Tensor, cache: LayerCache | None, groups: list[AttentionGroup]) -> Tensor:
    """q is (num_tokens, num_heads, head_dim), k and v this step's own; returns (num_tokens, num_heads, head_dim)."""
    if len(groups) == 1 and groups[0].rows is None:
        return _attend(q, k, v, cache, groups[0])
    output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for group in groups:
        assert group.rows is not None
        group_k, group_v = (k[group.rows], v[group.rows]) if group.slots is None else (k, v)
        output[group.rows] = _attend(q[group.rows], group_k, group_v, cache, group)
    return output


def _attend(q: Tensor, k: Tensor, v: Tensor, cache: LayerCache | None, group: AttentionGroup) -> Tensor:
    """Attention of one group; q, k and v hold its rows only. Returns (batch_size * query_len, heads, head_dim)."""
    batch_size, query_len, num_kv_heads = group.batch_size, group.query_len, k.shape[1]
    if group.slots is not None:
        assert cache is not None, "no KV cache is attached to the model"
        k, v = cache.read(group.slots, q.dtype)
    keys = k.unflatten(0, (batch_size, -1)).transpose(1, 2)  # (batch_size, num_kv_heads, key_len, head_dim)
    values = v.unflatten(0, (batch_size, -1)).transpose(1, 2)
    if group.is_causal:
        queries = q.unflatten(0, (batch_size, query_len)).transpose(1, 2)  # (batch_size, num_heads, query_len, …)
        is_grouped = queries.shape[1] != num_kv_heads
        output = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=is_grouped)
        return output.transpose(1, 2).flatten(0, 1)
    # Query heads of one key head become rows of its queries, so that keys and values are not repeated
    folded = q.view(batch_size, query_len, num_kv_heads, -1, q.shape[-1]).permute(0, 2, 3, 1, 4)
    output = F.scaled_dot_product_attention(folded.flatten(2, 3), keys, values, attn_mask=group.mask)
    return output.view(folded.shape).permute(0, 3, 1, 2, 4).reshape(q.shape)


def plain_attention(
    query_lens: IntArray,
    context_lens: IntArray,
    padding: IntArray,
    block_tables: IntArray | None,
    *,
    block_size: int,
    num_queries_per_kv: int,
    windows: Iterable[int | None] = (None,),
    dtype: torch.dtype,
    device: torch.device,
) -> PlainAttention:
    """PlainAttention for sequences whose last `query_lens[i]` of `context_lens[i]` slots are new, all (num_seqs,).

    The first `padding[i]` slots are attended to by nobody but themselves. `block_tables` is (num_seqs, max_blocks);
    None keeps no cache, and then every slot must be new. `windows` are those of the layers.
    """
    slots = None
    if block_tables is not None:
        slots = torch.from_numpy(cache_slots(query_lens, context_lens, block_tables, block_size)).to(device)
    row_starts = np.cumsum(query_lens) - query_lens
    groups: dict[int | None, list[AttentionGroup]] = {window: [] for window in windows}
    for members, is_fresh in _group_members(query_lens, context_lens):
        query_len, contexts, pads = int(query_lens[members[0]]), context_lens[members], padding[members]
        rows = read_slots = None
        if len(members) < len(query_lens):
            group_rows = row_starts[members][:, None] + np.arange(query_len)
            rows = torch.from_numpy(group_rows.ravel()).to(device)
        if not is_fresh:
            assert block_tables is not None, "without a KV cache every slot is computed anew"
            read_slots = torch.from_numpy(_read_slots(block_tables[members], contexts, block_size)).to(device)
        for window, of_window in groups.items():
            is_whole = window is None or window >= contexts.max()
            is_causal = is_fresh and is_whole and not pads.any()
            seen = None if is_whole else window
            mask = None if is_causal else _mask(contexts, pads, query_len, seen, num_queries_per_kv, dtype, device)
            of_window.append(AttentionGroup(len(members), query_len, rows, read_slots, mask, is_causal))
    return PlainAttention(slots, groups)


def flatten_slots(query_lens: IntArray, context_lens: IntArray) -> tuple[IntArray, IntArray]:
    """For every new token of the flattened batch: its sequence's index, and its slot counted from that's first."""
    seq_index = np.repeat(np.arange(len(query_lens)), query_lens)
    shift = context_lens - np.cumsum(query_lens)  # from row in the batch to slot in the sequence
    return seq_index, np.arange(len(seq_index)) + shift[seq_index]


def cache_slots(query_lens: IntArray, context_lens: IntArray, block_tables: IntArray, block_size: int) -> IntArray:
    """Cache slots of the last `query_lens[i]` of `context_lens[i]` slots of each sequence, (sum of query_lens,)."""
    seq_index, slot_index = flatten_slots(query_lens, context_lens)
    return block_tables[seq_index, slot_index // block_size] * block_size + slot_index % block_size


def _group_members(query_lens: IntArray, context_lens: IntArray) -> list[tuple[IntArray, bool]]:
    """Indices of the sequences of each group, in batch order, and whether all their slots are new."""
    is_fresh = query_lens == context_lens
    members = []
    for query_len, fresh in sorted({*zip(query_lens.tolist(), is_fresh.tolist(), strict=True)}):
        same = np.flatnonzero((query_lens == query_len) & (is_fresh == fresh))
        for part in _split_fresh(same, query_len) if fresh else _split_by_context(same, context_lens):
            members.append((part, fresh))
    return members


def _split_fresh(members: IntArray, query_len: int) -> list[IntArray]:
    """Cut a group of whole prompts where its masks, should it need them, would take too much memory."""
    size = max(1, MAX_MASK_ENTRIES // query_len**2)
    return [members[start : start + size] for start in range(0, len(members), size)]


def _split_by_context(members: IntArray, context_lens: IntArray) -> list[IntArray]:
    """Cut a group where padding all contexts to the longest would copy too much out of the cache."""
    contexts = context_lens[members]
    longest = int(contexts.max())
    if longest <= MAX_SPREAD * contexts.min() and longest * len(members) <= MAX_GATHERED_SLOTS:
        return [members]
    parts: list[list[int]] = []
    for index in members[np.argsort(-contexts, kind="stable")].tolist():
        longest = int(context_lens[parts[-1][0]]) if parts else 0
        is_close = longest <= MAX_SPREAD * context_lens[index]
        if parts and is_close and longest * (len(parts[-1]) + 1) <= MAX_GATHERED_SLOTS:
            parts[-1].append(index)
        else:
            parts.append([index])
    return [np.sort(np.array(part)) for part in parts]


def _read_slots(block_tables: IntArray, context_lens: IntArray, block_size: int) -> IntArray:
    """Cache slots of each whole context, padded to the longest, (batch_size * max context,)."""
    key_len = int(context_lens.max())
    num_blocks = -(-key_len // block_size)
    slots = block_tables[:, :num_blocks, None] * block_size + np.arange(block_size)
    slots = slots.reshape(len(context_lens), -1)[:, :key_len]  # (batch_size, key_len)
    if context_lens.min() < key_len:
        # Masked keys must be finite numbers too: repeat the sequence's own first slot
        slots = np.where(np.arange(key_len) < context_lens[:, None], slots, slots[:, :1])
    return slots.ravel()


def _mask(
    context_lens: IntArray,
    padding: IntArray,
    query_len: int,
    window: int | None,
    num_queries_per_kv: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """0 where a query may see a key, else -inf; None where all may. See AttentionGroup for the shape."""
    key_len = int(context_lens.max())
    if query_len == 1 and window is None and context_lens.min() == key_len and not padding.any():
        return None
    starts, pads = torch.from_numpy(np.stack((context_lens - query_len, padding))).to(device)[:, :, None, None]
    keys = torch.arange(key_len, device=device)
    queries = starts + torch.arange(query_len, device=device)[:, None]  # (batch_size, query_len, 1)
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    if padding.any():
        hidden |= (keys < pads) & (keys != queries)  # a pad sees itself, else its softmax would be of nothing
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
    # (batch_size, 1, num_queries_per_kv * query_len, key_len), in the order of the folded queries
    return mask[:, None] if query_len == 1 else mask[:, None].repeat(1, 1, num_queries_per_kv, 1)
