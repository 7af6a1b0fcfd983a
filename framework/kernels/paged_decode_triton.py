"""Triton kernel of paged_decode.py, which says what it computes.

Programs share a sequence by ranges of its length as read on the device; the last to finish adds the parts up.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from framework.kernels.layer_cache import less_offset, store_heads
from framework.kernels.old_tokens_triton import load_slots, old_int8_tokens, old_tokens, prefetch
from framework.kernels.rope_store import load_turned
from framework.kernels.triton_support import jit, jit_for_any, tl, triton


@jit_for_any("table_stride", "num_splits", "min_tiles")
def paged_decode_kernel(
    qkv, rope, q_norm, k_norm, norm_eps, tables, seats, context_lens, padding, k_cache, v_cache, scales, scale_stride,
    key_offset, output, parts, logs, counters, table_stride, plan, num_splits, min_tiles, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, BLOCK_KEYS: tl.constexpr, PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (key head, row, split): the query heads of one key head over a range of the row's old slots.

    With a plan, (3, any) as decode_plan's, it is (key head, item, 0).
    """
    kv_head, row, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    first_part = (row * KV_HEADS + kv_head) * num_splits
    if plan is not None:
        item, max_items = row, tl.num_programs(1)
        row = tl.load(plan + item).to(tl.int64)
        split = tl.load(plan + max_items + item)
        num_splits = tl.load(plan + 2 * max_items + item)
        first_part = kv_head.to(tl.int64) * max_items + item - split
    decode_part(
        qkv, rope, q_norm, k_norm, norm_eps, tables, seats, context_lens, padding, k_cache, v_cache, scales,
        scale_stride, key_offset, output, parts, logs, counters, table_stride, num_splits, min_tiles, scale,
        kv_head, row, split, first_part,
        KV_HEADS, GROUP, HEAD_DIM, BLOCK_SIZE, WINDOW, BLOCK_KEYS, PREFETCH, PDL,
    )  # fmt: skip


@jit_for_any("table_stride", "max_items", "min_tiles")
def paged_decode_items_kernel(
    qkv, rope, q_norm, k_norm, norm_eps, tables, seats, context_lens, padding, k_cache, v_cache, scales, scale_stride,
    key_offset, output, parts, logs, counters, table_stride, items, num_items, max_items, min_tiles, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Program p: items p // KV_HEADS of key head p % KV_HEADS, then those that are as many programs further on.

    An item is a row, a split, and that row's number of splits: (3, max_items), of which the first num_items count.
    """
    num_works = tl.load(num_items) * KV_HEADS
    for work in range(tl.program_id(0), num_works, tl.num_programs(0)):
        item, kv_head = work // KV_HEADS, tl.cast(work % KV_HEADS, tl.int64)
        row = tl.load(items + item).to(tl.int64)
        split = tl.load(items + max_items + item)
        num_splits = tl.load(items + 2 * max_items + item)
        decode_part(
            qkv, rope, q_norm, k_norm, norm_eps, tables, seats, context_lens, padding, k_cache, v_cache, scales,
            scale_stride, key_offset, output, parts, logs, counters, table_stride, num_splits, min_tiles, scale,
            kv_head, row, split, kv_head * max_items + item - split,
            KV_HEADS, GROUP, HEAD_DIM, BLOCK_SIZE, WINDOW, BLOCK_KEYS, False, False,
        )  # fmt: skip


@jit
def decode_part(
    qkv, rope, q_norm, k_norm, norm_eps, tables, seats, context_lens, padding, k_cache, v_cache, scales, scale_stride,
    key_offset, output, parts, logs, counters, table_stride, num_splits, min_tiles, scale, kv_head, row, split,
    first_part, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, BLOCK_KEYS: tl.constexpr, PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One split of one key head of one row; its splits' parts are in parts and logs from `first_part` on.

    Split 0 always has work, so the new token is its. `scale` includes 1 / ln 2: exponents are to base 2.
    """
    length = tl.load(context_lens + row)
    num_old = tl.maximum(length - 1, 0)
    first_old = 0
    if WINDOW > 0:
        first_old = tl.maximum(length - WINDOW, 0) // BLOCK_KEYS * BLOCK_KEYS
    num_tiles = tl.cdiv(num_old - first_old, BLOCK_KEYS)
    num_parts = tl.maximum(tl.minimum(num_tiles // min_tiles, num_splits), 1)
    split_tiles = tl.maximum(tl.cdiv(num_tiles, num_parts), 1)
    num_parts = tl.maximum(tl.cdiv(num_tiles, split_tiles), 1)
    start = first_old + split * split_tiles * BLOCK_KEYS
    end = tl.minimum(start + split_tiles * BLOCK_KEYS, num_old)
    if split < num_parts:
        table = tables + tl.load(seats + row, length > 0, other=0).to(tl.int64) * table_stride
        k_head, v_head = k_cache + kv_head * HEAD_DIM, v_cache + kv_head * HEAD_DIM
        k_scales, v_scales = scales, scales
        if scales is not None:
            k_scales += kv_head.to(tl.int64) * scale_stride
            v_scales += (KV_HEADS + kv_head).to(tl.int64) * scale_stride
        slots = load_slots(table, start, end, BLOCK_SIZE, BLOCK_KEYS)
        if PREFETCH:
            prefetch(k_head, slots, KV_HEADS * HEAD_DIM, HEAD_DIM)
            prefetch(v_head, slots, KV_HEADS * HEAD_DIM, HEAD_DIM)
            if scales is not None:
                prefetch(k_scales, slots, 1, 1)
                prefetch(v_scales, slots, 1, 1)
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()  # qkv is read and anything is written only below
        q, top, total, mean = new_token(
            qkv, rope, q_norm, k_norm, norm_eps, table, k_head, v_head, k_scales, v_scales, key_offset, row, kv_head,
            length, split, scale, KV_HEADS, GROUP, HEAD_DIM, BLOCK_SIZE,
        )  # fmt: skip
        num_hidden = tl.load(padding + row)
        if WINDOW > 0:
            num_hidden = tl.maximum(num_hidden, length - WINDOW)
        if scales is None:
            top, total, mean = old_tokens(
                q, top, total, mean, table, k_head, v_head, slots, start, end, num_hidden, scale,
                KV_HEADS * HEAD_DIM, HEAD_DIM, BLOCK_SIZE, BLOCK_KEYS,
            )  # fmt: skip
        else:
            top, total, mean = old_int8_tokens(
                q, top, total, mean, table, k_head, v_head, k_scales, v_scales, slots, start, end, num_hidden, scale,
                KV_HEADS * HEAD_DIM, HEAD_DIM, BLOCK_SIZE, BLOCK_KEYS,
            )  # fmt: skip
        finish(
            top, total, mean, output, parts, logs, counters, row * KV_HEADS + kv_head,
            split, first_part, num_parts, length, GROUP, HEAD_DIM,
        )  # fmt: skip


@jit
def new_token(
    qkv, rope, q_norm, k_norm, norm_eps, table, k_head, v_head, k_scales, v_scales, key_offset, row, kv_head, length,
    split, scale, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """q and the softmax's running maximum, sum and weighted values; split 0 stores the new token and begins with it."""
    PADDED: tl.constexpr = max(16, triton.next_power_of_2(GROUP))  # rows of a tensor core's tile
    channels = tl.arange(0, HEAD_DIM)[None, :]
    head = tl.arange(0, PADDED)[:, None]
    source = qkv + row * ((GROUP + 2) * KV_HEADS * HEAD_DIM)
    if rope is not None:
        rope += row * (2 * HEAD_DIM)
    q = load_turned(source + (kv_head * GROUP + head) * HEAD_DIM, rope, q_norm, norm_eps, head < GROUP, HEAD_DIM)
    q = q.to(qkv.dtype.element_ty)
    top = tl.full([PADDED], -1e30, tl.float32)  # finite, so that a tile of padding does no harm
    total = tl.zeros([PADDED], tl.float32)
    mean = tl.zeros([PADDED, HEAD_DIM], tl.float32)
    if split == 0:
        is_real = channels < length * HEAD_DIM  # none of an empty row's
        k_at = source + (GROUP * KV_HEADS + kv_head + tl.zeros([1, 1], tl.int32)) * HEAD_DIM
        k = load_turned(k_at, rope, k_norm, norm_eps, is_real, HEAD_DIM).to(q.dtype)
        v = tl.load(k_at + KV_HEADS * HEAD_DIM + channels, is_real, other=0.0)
        place = tl.maximum(length - 1, 0)
        block = tl.load(table + place // BLOCK_SIZE, length > 0, other=0).to(tl.int64)
        slot = block * BLOCK_SIZE + place % BLOCK_SIZE + tl.zeros([1, 1], tl.int64)
        at, is_head = slot * (KV_HEADS * HEAD_DIM) + channels, tl.zeros([1, 1], tl.int32) < length
        k = less_offset(k, key_offset, kv_head + tl.zeros([1, 1], tl.int32), is_head, HEAD_DIM)
        k = store_heads(k, k_head + at, is_real, k_scales, slot, is_head)
        v = store_heads(v, v_head + at, is_real, v_scales, slot, is_head)
        top = tl.sum(q.to(tl.float32) * k.to(tl.float32), 1) * scale
        total += 1.0
        mean += v.to(tl.float32)
    return q, top, total, mean


@jit
def finish(
    top, total, mean, output, parts, logs, counters, place, split, first_part, num_parts, length,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Store the output, or this split's part of it, and then the output if that was the last part to arrive."""
    total = tl.where(total > 0, total, 1.0)  # 0 if all of the split is padding: its part then weighs 2 ** top = 0
    mean = tl.where(length > 0, mean / total[:, None], 0.0)
    head = tl.arange(0, mean.shape[0])[:, None]
    at = head * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    output += place * (GROUP * HEAD_DIM)
    if num_parts == 1:
        tl.store(output + at, mean.to(output.dtype.element_ty), head < GROUP)
    elif parts is not None:
        part = first_part + split
        tl.store(parts + part * (GROUP * HEAD_DIM) + at, mean, head < GROUP)
        tl.store(logs + part * GROUP + head, (top + tl.log2(total))[:, None], head < GROUP)
        tl.debug_barrier()  # all threads' parts are stored before one of them counts
        if tl.atomic_add(counters + place, 1, sem="acq_rel") == num_parts - 1:
            combine(parts, logs, output, first_part, num_parts, GROUP, HEAD_DIM)
            tl.store(counters + place, 0)


@jit
def combine(parts, logs, output, first_part, num_parts, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Add up the parts of one row and key head, in their order whoever came last."""
    PADDED: tl.constexpr = triton.next_power_of_2(GROUP)
    CHUNK: tl.constexpr = 8  # parts read at once
    head = tl.arange(0, PADDED)
    channels = tl.arange(0, HEAD_DIM)
    top = tl.full([PADDED], -1e30, tl.float32)
    total = tl.zeros([PADDED], tl.float32)
    mean = tl.zeros([PADDED, HEAD_DIM], tl.float32)
    for first in range(0, num_parts, CHUNK):
        part = first + tl.arange(0, CHUNK)
        is_real = (part < num_parts)[:, None] & (head < GROUP)[None, :]
        at = (first_part + part)[:, None] * GROUP + head[None, :]  # (CHUNK, PADDED)
        log = tl.load(logs + at, is_real, other=float("-inf"), cache_modifier=".cg")
        at = at[:, :, None] * HEAD_DIM + channels[None, None, :]
        values = tl.load(parts + at, is_real[:, :, None], other=0.0, cache_modifier=".cg")
        new_top = tl.maximum(top, tl.max(log, 0))
        weights = tl.exp2(log - new_top[None, :])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, 0)
        mean = mean * shrink[:, None] + tl.sum(values * weights[:, :, None], 0)
        top = new_top
    total = tl.where(head < GROUP, total, 1.0)
    at = head[:, None] * HEAD_DIM + channels[None, :]
    tl.store(output + at, (mean / total[:, None]).to(output.dtype.element_ty), (head < GROUP)[:, None])
