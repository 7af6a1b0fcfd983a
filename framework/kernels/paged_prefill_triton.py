"""Triton kernel of paged_prefill.py, which says what it computes: FlashAttention (arXiv:2307.08691) over a paged cache.

The query heads of one key head are rows of one tile, so that keys and values are read once for all of them.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from framework.kernels.old_tokens_triton import load_slots
from framework.kernels.triton_support import jit, jit_for_any, tl, triton


@jit_for_any("q_stride", "table_stride", "tile_stride")
def paged_prefill_kernel(
    q, tables, tiles, num_tiles, k_cache, v_cache, scales, scale_stride, output, counters,
    q_stride, table_stride, tile_stride, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Each program takes the next (tile, key head) until none is left; the last to leave resets the two counters.

    `scale` includes 1 / ln 2: exponents are to base 2.
    """
    num_items = tl.load(num_tiles) * KV_HEADS
    item = tl.atomic_add(counters, 1)
    while item < num_items:
        tile, kv_head = tiles + item // KV_HEADS, item % KV_HEADS
        first_row = tl.load(tile).to(tl.int64)
        num_queries = tl.load(tile + tile_stride)
        seat = tl.load(tile + 2 * tile_stride).to(tl.int64)
        first_place = tl.load(tile + 3 * tile_stride)
        num_hidden = tl.load(tile + 4 * tile_stride)
        attend_tile(
            q + first_row * q_stride, tables + seat * table_stride, k_cache, v_cache, scales, scale_stride,
            output + first_row * (KV_HEADS * GROUP * HEAD_DIM), q_stride, num_queries, first_place, num_hidden,
            kv_head, scale, KV_HEADS, GROUP, HEAD_DIM, BLOCK_SIZE, WINDOW, QUERIES, BLOCK_KEYS,
        )  # fmt: skip
        item = tl.atomic_add(counters, 1)
    if tl.atomic_add(counters + 1, 1) == tl.num_programs(0) - 1:
        tl.store(counters, 0)
        tl.store(counters + 1, 0)


@jit
def attend_tile(
    q, table, k_cache, v_cache, scales, scale_stride, output, q_stride, num_queries, first_place, num_hidden,
    kv_head, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """One tile of one key head; q, table and output are the tile's own."""
    PADDED: tl.constexpr = triton.next_power_of_2(GROUP)
    ROWS: tl.constexpr = QUERIES * PADDED
    row = tl.arange(0, ROWS)
    query, head = row // PADDED, row % PADDED
    is_real = (query < num_queries) & (head < GROUP)
    channels = tl.arange(0, HEAD_DIM)[None, :]
    at = query[:, None] * q_stride + (kv_head * GROUP + head)[:, None] * HEAD_DIM + channels
    q_tile = tl.load(q + at, is_real[:, None], other=0.0)
    own = first_place + query  # the last place that each row sees
    first_seen = tl.zeros([ROWS], tl.int32) + num_hidden
    start, all_from = num_hidden, num_hidden  # where somebody, and from where on everybody, begins to see
    if WINDOW > 0:
        first_seen = tl.maximum(first_seen, own - (WINDOW - 1))
        start = tl.maximum(start, first_place - (WINDOW - 1))
        all_from = tl.maximum(all_from, first_place + num_queries - WINDOW)
    end = tl.maximum(first_place + num_queries, 0)  # places below 0 are nobody's
    start = start // BLOCK_KEYS * BLOCK_KEYS
    all_from = tl.minimum((all_from + BLOCK_KEYS - 1) // BLOCK_KEYS * BLOCK_KEYS, end)
    all_to = tl.maximum((first_place + 1) // BLOCK_KEYS * BLOCK_KEYS, all_from)
    k_head, v_head = k_cache + kv_head * HEAD_DIM, v_cache + kv_head * HEAD_DIM
    k_scales, v_scales = scales, scales
    if scales is not None:
        stride = tl.cast(scale_stride, tl.int64)
        k_scales += kv_head * stride
        v_scales += (KV_HEADS + kv_head) * stride
    top = tl.full([ROWS], -1e30, tl.float32)  # finite, so that keys that nobody sees do no harm
    total = tl.zeros([ROWS], tl.float32)
    mean = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    top, total, mean = attend_places(
        q_tile, top, total, mean, table, k_head, v_head, k_scales, v_scales, start, all_from, end, first_seen, own,
        scale, KV_HEADS * HEAD_DIM, HEAD_DIM, BLOCK_SIZE, BLOCK_KEYS, True,
    )  # fmt: skip
    top, total, mean = attend_places(
        q_tile, top, total, mean, table, k_head, v_head, k_scales, v_scales, all_from, all_to, end, first_seen, own,
        scale, KV_HEADS * HEAD_DIM, HEAD_DIM, BLOCK_SIZE, BLOCK_KEYS, False,
    )  # fmt: skip
    top, total, mean = attend_places(
        q_tile, top, total, mean, table, k_head, v_head, k_scales, v_scales, all_to, end, end, first_seen, own,
        scale, KV_HEADS * HEAD_DIM, HEAD_DIM, BLOCK_SIZE, BLOCK_KEYS, True,
    )  # fmt: skip
    total = tl.where(total > 0, total, 1.0)
    at = query[:, None] * (KV_HEADS * GROUP * HEAD_DIM) + (kv_head * GROUP + head)[:, None] * HEAD_DIM + channels
    tl.store(output + at, (mean / total[:, None]).to(output.dtype.element_ty), is_real[:, None])


@jit
def attend_places(
    q, top, total, mean, table, k_head, v_head, k_scales, v_scales, start, stop, end, first_seen, own, scale,
    STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Online softmax over places start … stop of `end`; all rows see all of them, unless MASKED."""
    channels = tl.arange(0, HEAD_DIM)[None, :]
    slots = load_slots(table, start, end, BLOCK_SIZE, BLOCK_KEYS)
    for first in range(start, stop, BLOCK_KEYS):
        next_slots = load_slots(table, first + BLOCK_KEYS, end, BLOCK_SIZE, BLOCK_KEYS)  # a tile early
        places = first + tl.arange(0, BLOCK_KEYS)
        at = slots[:, None] * STRIDE + channels
        if MASKED:
            is_key = (places < end)[:, None]
            k = tl.load(k_head + at, is_key, other=0.0)
            v = tl.load(v_head + at, is_key, other=0.0)
        else:
            k = tl.load(k_head + at)
            v = tl.load(v_head + at)
        scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee") * scale
        if k_scales is not None:
            scores *= tl.load(k_scales + slots, places < end, other=0.0).to(tl.float32)[None, :]
        if MASKED:
            is_seen = (places[None, :] <= own[:, None]) & (places[None, :] >= first_seen[:, None])
            scores = tl.where(is_seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        top, total = new_top, total * shrink + tl.sum(weights, 1)
        if v_scales is not None:
            v_scale = tl.load(v_scales + slots, places < end, other=0.0).to(tl.float32)
            largest = tl.max(v_scale, 0)  # weights stay in float16's range
            weights *= (v_scale / largest)[None, :]
            mean = mean * shrink[:, None] + largest * tl.dot(weights.to(q.dtype), v.to(q.dtype), input_precision="ieee")
        else:
            mean = tl.dot(weights.to(v.dtype), v, mean * shrink[:, None], input_precision="ieee")
        slots = next_slots
    return top, total, mean
