"""Attention of prompts and chunks of prompts over the paged KV cache, where their own keys and values are already.

A tile is a few queries of one sequence. Programs take the next one from a table on the device until none is left: a
CUDA graph may replay with other sequences, lengths and blocks, and programs that start late find less to do.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from framework.kernels.arrays import IntArray
from framework.kernels.layer_cache import LayerCache
from framework.kernels.paged_prefill_triton import paged_prefill_kernel
from framework.kernels.tiles import power_of_two
from framework.kernels.triton_support import check_triton, device_facts, queue_counters

TILE_ROWS = 128  # queries of a tile times the query heads of a key head, rounded up to a power of two


@dataclass(frozen=True, slots=True)
class PrefillTiles:
    """How one launch cuts its work: `block_keys`, a power of two, cache slots per iteration."""

    block_keys: int = 64
    num_warps: int = 8
    num_stages: int = 3
    programs_per_sm: int = 1


def queries_per_tile(num_queries_per_kv: int) -> int:
    return max(1, TILE_ROWS // power_of_two(num_queries_per_kv))


def most_tiles(num_rows: int, num_segments: int, num_queries_per_kv: int) -> int:
    """The most tiles that so many rows in so many segments can have."""
    return num_rows // queries_per_tile(num_queries_per_kv) + min(num_segments, num_rows)


def prefill_tiles(segments: IntArray, queries: int) -> IntArray:
    """Tiles of up to `queries` queries of segments (5, num_segments), cut like these: (5, num_tiles).

    A segment is its first row, its number of queries, its sequence's seat, its first query's place there, and how many
    of the first places it does not see; its other queries are at the next rows and places. One at places below 0 sees
    nothing, and gives zeros. The tiles that see the most come first, so that no program is left with one.
    """
    rows, lengths, seats, places, hidden = segments
    num_tiles = -(-lengths // queries)
    of_segment = np.repeat(np.arange(len(lengths)), num_tiles)
    first = (np.arange(len(of_segment)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)) * queries
    nums = np.minimum(lengths[of_segment] - first, queries)
    starts = places[of_segment] + first
    tiles = np.stack((rows[of_segment] + first, nums, seats[of_segment], starts, hidden[of_segment]))
    cut: IntArray = tiles[:, np.argsort(-(starts + nums), kind="stable")]
    return cut


def plain_paged_prefill(
    q: Tensor, tables: Tensor, tiles: Tensor, num_tiles: Tensor, cache: LayerCache, output: Tensor, *, block_size: int,
    window: int | None = None,
) -> None:  # fmt: skip
    """Write the attention of the tiles' queries to their rows of output (rows, num_heads * head_dim).

    q is (rows, num_heads, head_dim), ready; tables (num_seats, max_blocks) int32, slot = block * block_size + offset;
    tiles (5, any) int32 are those of `prefill_tiles`, of which the first num_tiles (1,) int32 count. A query sees the
    places up to its own, less the hidden ones, and the last `window` of them (None: all); all of them are in the cache.
    Scores are scaled by head_dim ** -0.5.
    """
    for row, num, seat, place, hidden in tiles[:, : int(num_tiles)].T.tolist():
        end = place + num
        queries = q[row : row + num].transpose(0, 1)  # (num_heads, num, head_dim)
        if end <= 0:
            output[row : row + num] = 0
            continue
        places = torch.arange(end, device=q.device)
        slots = tables[seat].long()[places // block_size] * block_size + places % block_size
        own = torch.arange(place, end, device=q.device)[:, None]
        is_seen = (places <= own) & (places >= hidden)
        if window is not None:
            is_seen &= places > own - window
        slots = slots.where(is_seen.any(0), slots[-1])  # what nobody sees may be anything
        keys, values = (part.transpose(0, 1) for part in cache.read(slots, q.dtype))
        attended = F.scaled_dot_product_attention(
            queries[None], keys[None], values[None], attn_mask=is_seen, enable_gqa=q.shape[1] != keys.shape[0]
        )
        output[row : row + num] = attended[0].transpose(0, 1).flatten(1)


def paged_prefill(
    q: Tensor, tables: Tensor, tiles: Tensor, num_tiles: Tensor, cache: LayerCache, output: Tensor, *, block_size: int,
    window: int | None = None, cut: PrefillTiles | None = None,
) -> None:  # fmt: skip
    """plain_paged_prefill as one Triton launch, of no more programs than `tiles` has room for.

    The tiles were made with queries_per_tile. Only q's rows may be strided. Launches share counters, so they must be of
    one stream.
    """
    check_triton("paged_prefill")
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = cache.k.shape[1]
    group = num_heads // num_kv_heads
    assert q.stride()[1:] == (head_dim, 1), q.stride()
    assert output.is_contiguous()
    cut = choose_prefill_tiles(q.dtype) if cut is None else cut
    num_programs = min(tiles.shape[1] * num_kv_heads, cut.programs_per_sm * device_facts(q.device)[0])
    paged_prefill_kernel[(num_programs,)](
        q, tables, tiles, num_tiles, *cache.kernel_args, output, queue_counters(q.device),
        q.stride(0), tables.stride(0), tiles.stride(0), head_dim**-0.5 / math.log(2),
        KV_HEADS=num_kv_heads, GROUP=group, HEAD_DIM=head_dim, BLOCK_SIZE=block_size, WINDOW=window or 0,
        QUERIES=queries_per_tile(group), BLOCK_KEYS=cut.block_keys, num_warps=cut.num_warps, num_stages=cut.num_stages,
    )  # fmt: skip


def choose_prefill_tiles(dtype: torch.dtype) -> PrefillTiles:
    return PrefillTiles(block_keys=16, num_stages=2) if dtype.itemsize == 4 else PrefillTiles()
