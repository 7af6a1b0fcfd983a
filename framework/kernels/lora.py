"""What LoRA adapters add to a linear layer, y += (x @ A.T) @ B, for a batch in which every row has its own adapter.

Rows are grouped by adapter in tables of fixed size, so that a CUDA graph holds whatever the batch asks for: a tile is a
few rows of one adapter. One kernel shrinks x to the rank, another expands it (Punica's SGMV, arXiv:2310.18547).
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from framework.kernels.arrays import IntArray
from framework.kernels.tiles import ceil_div, power_of_two
from framework.kernels.triton_support import check_triton, device_facts, jit_for_any, tl

MAX_PARTS = 3  # of one layer: q, k and v
MANY_ROWS = 256  # beyond, tiles are larger
MAX_SPLITS = 8  # with many rows the second kernel asks for the sums of all of them before it waits for one


@dataclass(frozen=True, slots=True)
class LoraTiles:
    """How the two launches cut their work; tile sizes are powers of two.

    block_m rows of one adapter, block_n output features, block_k input features per iteration; num_splits programs of
    the first kernel share the sum over the input features.
    """

    block_m: int
    block_n: int
    block_k: int
    num_splits: int
    num_warps: int = 4
    num_stages: int = 3


def choose_lora_tiles(num_rows: int, in_features: int, num_parts: int, max_rank: int) -> LoraTiles:
    """Tiles for a shape, chosen by what was fastest on an H200 at rank 16; the kernels' own sizes change with max_rank
    and with more than MANY_ROWS only.

    Sums are split until there are enough programs, even if all rows have one adapter: how many have is not known here.
    """
    block_m = rows_per_tile(num_rows)
    if num_rows > MANY_ROWS:
        wanted = (4 if num_rows <= 1024 else 2) * (1 if num_parts > 1 else 2)
        num_splits = min(wanted, ceil_div(in_features, 256))
        return LoraTiles(block_m, 256 if max_rank <= 32 else 128, 128, num_splits, num_warps=4 if max_rank <= 64 else 8)
    block_k = 256 if max_rank <= 32 else 128 if max_rank <= 64 else 64
    block_n = 128 if max_rank > 32 else 256 if num_parts > 1 else 512
    num_splits = min(8 if num_rows <= 4 else 4, ceil_div(in_features, 2 * block_k))
    return LoraTiles(block_m, block_n, block_k, num_splits, num_warps=2 if num_rows > 16 and num_parts > 1 else 4)


def rows_per_tile(num_rows: int) -> int:
    return 16 if num_rows <= MANY_ROWS else 32


def segments(slots: IntArray, block_m: int | None) -> IntArray:
    """Tables (4, rows) that group rows by their slot: the rows in that order; each tile's slot, first place, length.

    `slots` (rows,) is where each row's adapter is, 0: none, which has tiles too. A tile has up to `block_m` rows of one
    slot (None: all of them); the tables have room for one per row, and tiles that are not needed have no rows.
    """
    tables = np.zeros((4, len(slots)), dtype=np.int64)
    order, tile_slots, starts, lengths = tables
    order[:] = np.argsort(slots, kind="stable")
    ordered = slots[order]
    firsts = np.flatnonzero(np.diff(ordered, prepend=-1))
    ends = np.append(firsts[1:], len(slots))
    sizes = ends - firsts
    num_tiles = np.ones_like(sizes) if block_m is None else -(-sizes // block_m)
    size = len(slots) if block_m is None else block_m
    of_group = np.repeat(np.arange(len(firsts)), num_tiles)
    within = np.arange(len(of_group)) - (np.cumsum(num_tiles) - num_tiles)[of_group]
    num = len(of_group)
    starts[:num] = firsts[of_group] + within * size
    tile_slots[:num] = ordered[firsts][of_group]
    lengths[:num] = np.minimum(ends[of_group] - starts[:num], size)
    return tables


def adapter_delta(x: Tensor, a: Tensor, b: Tensor, sizes: Sequence[int]) -> Tensor:
    """What one adapter adds: x (rows, in), a (rank, parts, in), b (rank, sum of sizes) → (rows, sum of sizes).

    Each part of the columns, `sizes` of them, has its own A.
    """
    parts = zip(a.unbind(1), b.split(list(sizes), dim=1), strict=True)
    return torch.cat([x @ part_a.T @ part_b for part_a, part_b in parts], dim=1)


def plain_lora_delta(x: Tensor, a: Tensor, b: Tensor, ranks: Tensor, tables: Tensor, sizes: Sequence[int]) -> Tensor:
    """(rows, sum of sizes): what the adapter of each row of x (rows, in) adds; zero where it has none.

    a (slots, max_rank, parts, in) and b (slots, max_rank, sum of sizes) hold an adapter per slot, of which the first
    `ranks[slot]` ranks count; `tables` are those of `segments`.
    """
    delta = x.new_zeros(x.shape[0], sum(sizes))
    order, *tiles = tables.tolist()
    for slot, start, length in zip(*tiles, strict=True):
        rows, rank = order[start : start + length], int(ranks[slot])
        if length and rank:
            delta[rows] = adapter_delta(x[rows], a[slot, :rank], b[slot, :rank], sizes)
    return delta


def lora_delta(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    ranks: Tensor,
    tables: Tensor,
    sizes: Sequence[int],
    tiles: LoraTiles | None = None,
) -> Tensor:
    """plain_lora_delta in two Triton launches; sums are float32, between the launches too.

    `tables` int32 were made with rows_per_tile(rows), or with block_m of `tiles`. What is in the slots must not have
    been written by a kernel of the same step: it is read before the previous kernel is done.
    """
    check_triton("lora_delta")
    (num_rows, in_features), (num_slots, max_rank, num_parts, _) = x.shape, a.shape
    assert a.stride(3) == b.stride(2) == x.stride(1) == tables.stride(1) == 1
    assert len(sizes) == num_parts <= MAX_PARTS, sizes
    assert a.stride(2) == in_features
    tiles = choose_lora_tiles(num_rows, in_features, num_parts, max_rank) if tiles is None else tiles
    num_tiles = min(num_rows, num_rows // tiles.block_m + num_slots)
    num_splits = tiles.num_splits
    assert num_splits <= MAX_SPLITS, tiles
    share = ceil_div(ceil_div(in_features, tiles.block_k), num_splits)  # iterations of one split
    block_r = max(16, power_of_two(max_rank))
    pdl = device_facts(x.device)[1]
    options = {"num_warps": tiles.num_warps, **({"launch_pdl": True} if pdl else {})}
    hidden = torch.empty(num_splits, num_rows, num_parts, max_rank, dtype=torch.float32, device=x.device)
    delta = torch.empty(num_rows, sum(sizes), dtype=x.dtype, device=x.device)
    _shrink_kernel[(num_tiles, num_parts, num_splits)](
        x, a, hidden, ranks, tables, num_rows, share, in_features, max_rank, x.stride(0), a.stride(0),
        a.stride(1), tables.stride(0), BLOCK_M=tiles.block_m, BLOCK_R=block_r, BLOCK_K=tiles.block_k, PDL=pdl,
        num_stages=tiles.num_stages, **options,
    )  # fmt: skip
    first, second, third = [*sizes, 0, 0][:MAX_PARTS]
    _expand_kernel[(num_tiles, sum(ceil_div(size, tiles.block_n) for size in sizes))](
        hidden, b, delta, ranks, tables, num_rows, num_splits, max_rank, first, second, third, b.stride(0), b.stride(1),
        tables.stride(0), NUM_PARTS=num_parts, MAX_SPLITS=MAX_SPLITS if num_rows > MANY_ROWS else 0,
        BLOCK_M=tiles.block_m, BLOCK_R=block_r, BLOCK_N=tiles.block_n, PDL=pdl, **options,
    )  # fmt: skip
    return delta


@jit_for_any("num_rows", "share", "table_stride")
def _shrink_kernel(
    x, a, hidden, ranks, tables, num_rows, share, in_features, max_rank, x_stride, slot_stride, rank_stride,
    table_stride, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """hidden[split, row, part] = x[row, those features] @ A.T: (num_splits, num_rows, num_parts, max_rank)."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tile, part, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot = tl.load(tables + table_stride + tile).to(tl.int64)
    start = tl.load(tables + 2 * table_stride + tile)
    length = tl.load(tables + 3 * table_stride + tile)
    rank = tl.load(ranks + slot, mask=length > 0, other=0)
    first = split * share * BLOCK_K
    end = tl.minimum(first + share * BLOCK_K, in_features)
    r, place = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_M)
    a_rows = a + slot * slot_stride + r.to(tl.int64)[:, None] * rank_stride + part * in_features
    k = first + tl.arange(0, BLOCK_K)
    is_rank = (r < rank)[:, None]
    a_tile = tl.load(a_rows + k[None, :], mask=is_rank & (k < end)[None, :], other=0.0)  # before x is there
    if PDL:
        tl.extra.cuda.gdc_wait()
    if rank > 0:
        rows = tl.load(tables + start + place, mask=place < length, other=0).to(tl.int64)
        x_rows = x + rows[:, None] * x_stride
        is_row = (place < length)[:, None]
        x_tile = tl.load(x_rows + k[None, :], mask=is_row & (k < end)[None, :], other=0.0)
        acc = tl.dot(x_tile, tl.trans(a_tile), input_precision="ieee")  # (BLOCK_M, BLOCK_R)
        for k0 in range(first + BLOCK_K, end, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            a_tile = tl.load(a_rows + k[None, :], mask=is_rank & (k < end)[None, :], other=0.0)
            x_tile = tl.load(x_rows + k[None, :], mask=is_row & (k < end)[None, :], other=0.0)
            acc = tl.dot(x_tile, tl.trans(a_tile), acc, input_precision="ieee")
        num_parts = tl.num_programs(1)
        out = hidden + ((split * num_rows + rows[:, None]) * num_parts + part) * max_rank + r[None, :]
        tl.store(out, acc, mask=is_row & (r < rank)[None, :])


@jit_for_any("num_rows", "num_splits", "table_stride")
def _expand_kernel(
    hidden, b, delta, ranks, tables, num_rows, num_splits, max_rank, first_size, second_size, third_size,
    slot_stride, rank_stride, table_stride, NUM_PARTS: tl.constexpr, MAX_SPLITS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """delta[row, columns of a part] = hidden[row, part] @ B, zero for rows without an adapter.

    The sums of MAX_SPLITS programs, those that there are, are asked for at once; 0: one after the other.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tile, block = tl.program_id(0), tl.program_id(1)
    first_blocks, second_blocks = tl.cdiv(first_size, BLOCK_N), tl.cdiv(second_size, BLOCK_N)
    part, part_start, part_size = 0, 0, first_size  # a block has columns of one part
    if block >= first_blocks + second_blocks:
        part, part_start, part_size = 2, first_size + second_size, third_size
        block -= first_blocks + second_blocks
    elif block >= first_blocks:
        part, part_start, part_size = 1, first_size, second_size
        block -= first_blocks
    slot = tl.load(tables + table_stride + tile).to(tl.int64)
    start = tl.load(tables + 2 * table_stride + tile)
    length = tl.load(tables + 3 * table_stride + tile)
    rank = tl.load(ranks + slot, mask=length > 0, other=0)
    r, place = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_M)
    within = block * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = part_start + within
    b_rows = b + slot * slot_stride + r.to(tl.int64)[:, None] * rank_stride
    is_col = (within < part_size)[None, :]
    is_rank = (r < rank)[:, None]
    b_tile = tl.load(b_rows + cols[None, :], mask=is_rank & is_col, other=0.0)  # before hidden is there
    if PDL:
        tl.extra.cuda.gdc_wait()
    if length > 0:
        rows = tl.load(tables + start + place, mask=place < length, other=0).to(tl.int64)
        is_row = (place < length)[:, None]
        hidden_rows = hidden + (rows[:, None] * NUM_PARTS + part) * max_rank + r[None, :]
        summed = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
        for split in range(0 if MAX_SPLITS else num_splits):
            split_rows = hidden_rows + split * num_rows * NUM_PARTS * max_rank
            summed += tl.load(split_rows, mask=is_row & (r < rank)[None, :], other=0.0)
        for split in tl.static_range(MAX_SPLITS):
            split_rank = tl.where(num_splits > split, rank, 0)
            split_rows = hidden_rows + split * num_rows * NUM_PARTS * max_rank
            summed += tl.load(split_rows, mask=is_row & (r < split_rank)[None, :], other=0.0)
        acc = tl.dot(summed.to(b_tile.dtype), b_tile, input_precision="ieee")
        out_features = first_size + second_size + third_size
        out = delta + rows[:, None] * out_features + cols[None, :]
        tl.store(out, acc.to(delta.dtype.element_ty), mask=is_row & is_col)
