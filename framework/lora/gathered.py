"""Copies of the adapters, then one product for all rows (lesson 6 of "Efficiently Serving LLMs").

The lesson copies an adapter for each sequence of a padded batch. Here rows are flattened, and those of one adapter are
cut into tiles of equal length, each with a copy: in a decode step of different adapters a tile is one row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from framework.kernels.arrays import IntArray
from framework.kernels.lora import segments
from framework.lora.pool import AdapterPool, LoRA

MAX_GATHERED_BYTES = 2**28  # of A and B copied out for one batched product; more tiles take several


class Gathered:
    is_static = True

    def tables(self, slots: IntArray, pool: AdapterPool) -> IntArray:
        num_groups = pool.num_slots + 1 if has_fixed_shapes(pool.slab) else len(np.unique(slots))
        return padded_tiles(slots, rows_per_copy(len(slots), num_groups))

    def delta(self, x: Tensor, lora: LoRA) -> Tensor:
        delta = gathered_delta if torch.compiler.is_compiling() else batched_delta
        return delta(x, lora.a, lora.b, lora.pool.tables, lora.sizes)


def has_fixed_shapes(x: Tensor) -> bool:
    """Whether a graph may hold what is launched for x, so that it must do for any adapters."""
    return x.is_cuda


def rows_per_copy(num_rows: int, num_groups: int) -> int:
    """How many rows a tile has: as many as a group in the mean, so that at most half of all places are empty.

    With fixed shapes every slot, and no adapter, may be a group.
    """
    return max(1, num_rows // max(1, num_groups))


def padded_tiles(slots: IntArray, num_places: int) -> IntArray:
    """Tables (3, rows): the slot of each tile and its number of rows, and each row's place in the padded tiles.

    A tile has `num_places`, and rows of one slot (rows,) in the first of them. Tiles that are not needed have no rows.
    """
    if num_places == 1:  # in the order that they have
        return np.stack((slots, np.ones_like(slots), np.arange(len(slots))))
    order, tile_slots, starts, lengths = segments(slots, num_places)
    tiles = np.repeat(np.arange(len(slots)), lengths)
    places = np.empty_like(order)
    places[order] = tiles * num_places + np.arange(len(slots)) - starts[tiles]
    return np.stack((tile_slots, lengths, places))


def batched_delta(x: Tensor, a: Tensor, b: Tensor, tables: Tensor, sizes: Sequence[int]) -> Tensor:
    """See plain_lora_delta; `tables` are those of padded_tiles, and may have room for more rows than x has.

    The ranks of a slot beyond its adapter's are zero.
    """
    num_rows, num_slots = len(x), len(a)
    if num_rows == 0:
        return x.new_empty(0, b.shape[2])
    slots, lengths, places = tables[:, :num_rows]
    if has_fixed_shapes(x):  # as many as any adapters need
        num_places = rows_per_copy(num_rows, num_slots)
        num_tiles = min(num_rows, num_rows // num_places + num_slots)
    else:
        num_places, num_tiles = int(lengths.max()), int(lengths.count_nonzero())
    return tiles_delta(x, a, b, slots[:num_tiles], places, num_places, sizes)


def tiles_delta(
    x: Tensor, a: Tensor, b: Tensor, slots: Tensor, places: Tensor, num_places: int, sizes: Sequence[int]
) -> Tensor:
    """The same for tiles of `num_places` whose adapters are in `slots` (tiles,), with each row of x at its place."""
    tiles = x[:, None]
    if num_places > 1:
        padded = x.new_zeros(len(slots) * num_places, x.shape[1]).index_copy_(0, places.long(), x)
        tiles = padded.view(len(slots), num_places, -1)
    bytes_per_copy = (a[0].numel() + b[0].numel()) * a.itemsize
    num_tiles = max(1, MAX_GATHERED_BYTES // bytes_per_copy)
    chunks = zip(tiles.split(num_tiles), slots.split(num_tiles), strict=True)
    delta = torch.cat([_gathered(some, a, b, own, sizes) for some, own in chunks]).flatten(0, 1)
    return delta.index_select(0, places) if num_places > 1 else delta


@torch.library.custom_op("framework::gathered_delta", mutates_args=())
def gathered_delta(x: Tensor, a: Tensor, b: Tensor, tables: Tensor, sizes: Sequence[int]) -> Tensor:
    """batched_delta as one operation of a compiled block."""
    return batched_delta(x, a, b, tables, sizes)


@gathered_delta.register_fake
def _(x: Tensor, a: Tensor, b: Tensor, tables: Tensor, sizes: Sequence[int]) -> Tensor:
    return x.new_empty(x.shape[0], b.shape[2])


def _gathered(tiles: Tensor, a: Tensor, b: Tensor, slots: Tensor, sizes: Sequence[int]) -> Tensor:
    """(tiles, places, in) → (tiles, places, sum of sizes)."""
    own_a, own_b = a.index_select(0, slots), b.index_select(0, slots)
    hidden = torch.bmm(own_a.flatten(1, 2), tiles.transpose(1, 2)).unflatten(1, own_a.shape[1:3])
    parts = zip(hidden.transpose(1, 3).unbind(2), own_b.split(list(sizes), dim=2), strict=True)
    return torch.cat([torch.bmm(part, part_b) for part, part_b in parts], dim=2)
