"""One decode step of one layer's attention in one launch: QK-norm, rope, the KV cache write and attention over it.

Programs share a sequence (split-KV) by ranges of its length as read on the device, so that a CUDA graph may replay with
other lengths; the one that finishes last adds the parts up. The new token's k and v never come from the cache, but they
are rounded like what an int8 one holds.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.kernels.decode_plan import MAX_SPLITS, MIN_KEYS, decode_plan
from framework.kernels.layer_cache import LayerCache
from framework.kernels.paged_decode_triton import paged_decode_items_kernel, paged_decode_kernel
from framework.kernels.rope_store import check_qkv, plain_rope_store
from framework.kernels.triton_support import MAX_COUNTERS, check_triton, counters, device_facts

PROGRAMS_PER_SM = 4
# Of decode_plan's parts in a decode step. No more than PROGRAMS_PER_SM: then rows of one length are not split
PLAN_PROGRAMS_PER_SM = 4


@dataclass(frozen=True, slots=True)
class DecodeTiles:
    """How one launch cuts its work; block_keys and min_keys are powers of two.

    block_keys cache slots per iteration, min_keys of them at least per split; `prefetch` brings a split's first ones to
    L2 before the previous kernel is done, `pdl` lets the launches overlap.
    """

    block_keys: int = 64
    num_warps: int = 4
    num_stages: int = 3
    min_keys: int = 64
    prefetch: bool = True
    pdl: bool = True


# By what was fastest inside a mixed step on an H200
ITEM_TILES = DecodeTiles(min_keys=MIN_KEYS)
ITEM_PROGRAMS_PER_SM = 2


def plain_paged_decode(
    qkv: Tensor, rope: Tensor | None, tables: Tensor, seats: Tensor, context_lens: Tensor, padding: Tensor,
    cache: LayerCache, *, num_kv_heads: int, block_size: int,
    q_norm: Tensor | None = None, k_norm: Tensor | None = None, norm_eps: float = 0.0, window: int | None = None,
    num_splits: int | None = None,
) -> Tensor:  # fmt: skip
    """Attention of one new token per row over its whole context, (rows, num_heads * head_dim).

    qkv, rope, norms and cache are those of plain_rope_store; slot = block * block_size + offset. Row i's blocks are
    tables[seats[i]] of tables (num_seats, max_blocks). It has context_lens[i] slots, the last being the new token's,
    which is written there; the first padding[i] slots are not attended to, save by themselves, nor are those before the
    last `window` slots (None: there is no window). Rows of length 0 are empty: zeros, and nothing is written. All
    int32, (rows,). Scores are scaled by head_dim ** -0.5. num_splits is paged_decode's.
    """
    lengths = context_lens.tolist()
    outputs, all_slots = [], []
    for seat, length in zip(seats.tolist(), lengths, strict=True):
        places = torch.arange(length, device=qkv.device)
        blocks = tables[seat].long()[places // block_size] if length else places
        all_slots.append(blocks * block_size + places % block_size)
    filled = context_lens > 0
    new_slots = torch.tensor(
        [int(slots[-1]) for slots in all_slots if len(slots)], dtype=torch.int64, device=qkv.device
    )
    q, k, v = plain_rope_store(
        qkv, rope, None, None, num_kv_heads=num_kv_heads, q_norm=q_norm, k_norm=k_norm, norm_eps=norm_eps
    )
    cache.store(new_slots, k[filled], v[filled])
    for row, slots in enumerate(all_slots):
        if not len(slots):
            outputs.append(torch.zeros_like(q[row]))
            continue
        first_seen = max(int(padding[row]), 0 if window is None else len(slots) - window)
        seen = slots[min(first_seen, len(slots) - 1) :]
        keys, values = (part.transpose(0, 1)[None] for part in cache.read(seen, q.dtype))
        query, is_grouped = q[row][None, :, None], q.shape[1] != num_kv_heads
        outputs.append(F.scaled_dot_product_attention(query, keys, values, enable_gqa=is_grouped)[0, :, 0])
    return torch.stack(outputs).flatten(1)


def paged_decode(
    qkv: Tensor, rope: Tensor | None, tables: Tensor, seats: Tensor, context_lens: Tensor, padding: Tensor,
    cache: LayerCache, *, num_kv_heads: int, block_size: int,
    q_norm: Tensor | None = None, k_norm: Tensor | None = None, norm_eps: float = 0.0, window: int | None = None,
    num_splits: int | None = None, tiles: DecodeTiles | None = None, plan: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """plain_paged_decode as one Triton launch: num_splits programs (None: choose_splits) per row and key head.

    With a `plan` (decode_plan's, of these context_lens) there is one per item and key head instead.

    Everything must be contiguous, head_dim a power of two of at least 16, or 32 with an int8 cache. With overlapping
    launches tables, seats, context_lens and plan are read before the kernels ahead are done: an ordinary launch must
    follow what writes them. Launches share counters, so they must be of one stream.
    """
    check_triton("paged_decode")
    check_qkv(qkv, num_kv_heads)
    num_rows, num_all_heads, head_dim = qkv.shape
    num_heads = num_all_heads - 2 * num_kv_heads
    _check_sizes(num_rows, num_kv_heads, head_dim, cache)
    group = num_heads // num_kv_heads
    num_sms, has_pdl = device_facts(qkv.device)
    if tiles is None:
        tiles = choose_tiles(num_rows, num_kv_heads, num_sms, head_dim, cache.scales is not None)
        if plan is not None:
            tiles = replace(tiles, min_keys=MIN_KEYS)
        if qkv.element_size() == 4:  # same bytes per tile; with a plan, half of them: more need too many registers
            tiles = replace(tiles, block_keys=tiles.block_keys // (2 if plan is None else 4))
    num_splits = choose_splits(num_rows, num_kv_heads, num_sms) if num_splits is None else num_splits
    output = torch.empty((num_rows, num_heads * head_dim), dtype=qkv.dtype, device=qkv.device)
    grid = (num_kv_heads, num_rows, num_splits) if plan is None else (num_kv_heads, plan.shape[1], 1)
    parts = logs = None
    if plan is not None or num_splits > 1:
        parts = torch.empty((*grid, group, head_dim), device=qkv.device)
        logs = torch.empty((*grid, group), device=qkv.device)
    pdl = tiles.pdl and has_pdl
    if num_rows:
        paged_decode_kernel[grid](
            qkv, rope, q_norm, k_norm, norm_eps, tables, seats, context_lens, padding, *cache.written_args,
            output, parts, logs, counters(qkv.device), tables.stride(0), plan, num_splits,
            max(1, tiles.min_keys // tiles.block_keys), head_dim**-0.5 / math.log(2),
            KV_HEADS=num_kv_heads, GROUP=group, HEAD_DIM=head_dim, BLOCK_SIZE=block_size, BLOCK_KEYS=tiles.block_keys,
            WINDOW=window or 0, PREFETCH=tiles.prefetch and has_pdl, PDL=pdl,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages, **({"launch_pdl": True} if pdl else {}),
        )  # fmt: skip
    return output


def paged_decode_items(
    qkv: Tensor, rope: Tensor | None, tables: Tensor, seats: Tensor, context_lens: Tensor, padding: Tensor,
    items: Tensor, num_items: Tensor, cache: LayerCache, output: Tensor, *, num_kv_heads: int, block_size: int,
    q_norm: Tensor | None = None, k_norm: Tensor | None = None, norm_eps: float = 0.0, window: int | None = None,
) -> None:  # fmt: skip
    """plain_paged_decode of those rows that `decode_items` names, to their rows of output (rows or more, any).

    items (3, any) int32, of which the first num_items (1,) int32 count, are read on the device: programs take them in
    turn, and a CUDA graph may replay with others.
    """
    check_triton("paged_decode_items")
    check_qkv(qkv, num_kv_heads)
    num_rows, num_all_heads, head_dim = qkv.shape
    group, max_items = num_all_heads // num_kv_heads - 2, items.shape[1]
    _check_sizes(num_rows, num_kv_heads, head_dim, cache)
    assert items.is_contiguous()
    assert output.is_contiguous()
    parts = torch.empty((num_kv_heads, max_items, group, head_dim), device=qkv.device)
    logs = torch.empty((num_kv_heads, max_items, group), device=qkv.device)
    tiles = ITEM_TILES if qkv.element_size() != 4 else replace(ITEM_TILES, block_keys=ITEM_TILES.block_keys // 2)
    num_programs = min(max_items * num_kv_heads, ITEM_PROGRAMS_PER_SM * device_facts(qkv.device)[0])
    paged_decode_items_kernel[(num_programs,)](
        qkv, rope, q_norm, k_norm, norm_eps, tables, seats, context_lens, padding, *cache.written_args,
        output, parts, logs, counters(qkv.device), tables.stride(0), items, num_items, max_items,
        max(1, tiles.min_keys // tiles.block_keys), head_dim**-0.5 / math.log(2),
        KV_HEADS=num_kv_heads, GROUP=group, HEAD_DIM=head_dim, BLOCK_SIZE=block_size, WINDOW=window or 0,
        BLOCK_KEYS=tiles.block_keys, num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip


def parts_wanted(num_kv_heads: int, device: torch.device, programs_per_sm: int = ITEM_PROGRAMS_PER_SM) -> int:
    """Parts that give every program its own: so many per SM, of paged_decode_items unless given."""
    return -(-programs_per_sm * device_facts(device)[0] // num_kv_heads)


def choose_plan(context_lens: Tensor, num_kv_heads: int) -> Tensor | None:
    """What paged_decode takes for rows of these lengths: decode_plan's for so many that choose_splits splits none."""
    device = context_lens.device
    if choose_splits(len(context_lens), num_kv_heads, device_facts(device)[0]) > 1:
        return None
    return decode_plan(context_lens, parts_wanted(num_kv_heads, device, PLAN_PROGRAMS_PER_SM))


def _check_sizes(num_rows: int, num_kv_heads: int, head_dim: int, cache: LayerCache) -> None:
    if cache.scales is not None and head_dim < 32:
        raise ValueError(f"head_dim {head_dim} is too small for an int8 cache, which is read in halves of at least 16")
    if num_rows * num_kv_heads > MAX_COUNTERS:
        raise ValueError(f"{num_rows} rows of {num_kv_heads} key heads are more than {MAX_COUNTERS} counters")


def choose_splits(num_rows: int, num_kv_heads: int, num_sms: int) -> int:
    """How many parts a long row has at most; splits that a short row has no use for leave at once.

    They are not free: where rows alone fill the device, none is split, unless a plan says so.
    """
    num_programs = num_rows * num_kv_heads
    if num_programs < num_sms:
        return MAX_SPLITS
    return 8 if num_programs < PROGRAMS_PER_SM * num_sms else 1


def choose_tiles(
    num_rows: int, num_kv_heads: int, num_sms: int, head_dim: int = 128, is_int8: bool = False
) -> DecodeTiles:
    """By what was fastest inside a step on an H200: short splits while programs are few."""
    num_programs = num_rows * num_kv_heads
    is_few = 4 * num_programs < num_sms
    min_keys = 128 if is_few else 512
    if is_int8:
        return DecodeTiles(block_keys=128, min_keys=min_keys)
    if is_few and head_dim <= 64:
        return DecodeTiles(block_keys=64, num_warps=2, num_stages=2, min_keys=64)
    if num_programs <= 2 * num_sms:
        return DecodeTiles(block_keys=128, num_stages=3 if is_few and head_dim <= 128 else 2, min_keys=min_keys)
    return DecodeTiles(num_stages=2, min_keys=min_keys)
