"""What MixedAttention needs on the device of one step, as numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from framework.kernels.arrays import IntArray
from framework.kernels.attention import flatten_slots
from framework.kernels.decode_plan import decode_items
from framework.kernels.paged_prefill import most_tiles, prefill_tiles, queries_per_tile


@dataclass(frozen=True, slots=True)
class MixedSizes:
    """Room for a step of up to `num_rows` rows of up to `num_seqs` sequences.

    Rows that decode are split as if all of them were cut into `num_parts` parts: see decode_items.
    """

    num_rows: int
    num_seqs: int
    num_queries_per_kv: int
    num_parts: int

    @property
    def num_decode(self) -> int:
        return min(self.num_rows, self.num_seqs)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the arrays of `mixed_inputs`: every sequence may be a segment, so may its pads and the rows of nobody."""
        num_tiles = most_tiles(self.num_rows, 2 * self.num_seqs + 1, self.num_queries_per_kv)
        decode = dict.fromkeys(("decode_seats", "decode_lens", "decode_padding"), (self.num_decode,))
        tables = {"items": (3, self.num_decode + self.num_parts), "tiles": (5, num_tiles)}
        return {"slots": (self.num_rows,), **decode, **tables, "num_items": (1,), "num_tiles": (1,)}


def mixed_inputs(
    query_lens: IntArray,
    context_lens: IntArray,
    padding: IntArray,
    tables: IntArray,
    seats: IntArray,
    sizes: MixedSizes,
    *,
    num_decode: int,
    block_size: int,
) -> dict[str, IntArray]:
    """Arrays for sequences whose last `query_lens[i]` of `context_lens[i]` slots are new, by MixedAttention's names.

    The blocks of sequence i are in row `seats[i]` of `tables`. The first `num_decode` sequences decode; the others are
    prompts and chunks. Rows up to `sizes.num_rows` beyond theirs are a segment of nobody.
    """
    num_rows = int(query_lens.sum())
    seq_index, slot_index = flatten_slots(query_lens, context_lens)
    slots = np.full(sizes.num_rows, -1)
    rows = slice(num_decode, num_rows)
    blocks = tables[seats[seq_index[rows]], slot_index[rows] // block_size]
    slots[rows] = blocks * block_size + slot_index[rows] % block_size
    items = decode_items(context_lens[:num_decode], sizes.num_parts)
    segments = _segments(query_lens, context_lens, padding, seats, num_decode, sizes.num_rows)
    tiles = prefill_tiles(segments, queries_per_tile(sizes.num_queries_per_kv))
    return {
        "slots": slots,
        "decode_seats": seats[:num_decode],
        "decode_lens": context_lens[:num_decode],
        "decode_padding": padding[:num_decode],
        "items": items,
        "num_items": np.array([items.shape[1]]),
        "tiles": tiles,
        "num_tiles": np.array([tiles.shape[1]]),
    }


def _segments(
    query_lens: IntArray, context_lens: IntArray, padding: IntArray, seats: IntArray, num_decode: int, num_rows: int
) -> IntArray:
    """Those of prefill_tiles.

    The pads of a whole prompt are a segment of their own, so are the spare rows, at places below 0.
    """
    first_rows = np.cumsum(query_lens) - query_lens
    used = int(query_lens.sum())
    starts = context_lens - query_lens
    num_pads = np.minimum(np.maximum(padding - starts, 0), query_lens)
    of_prompts = slice(num_decode, None)
    zeros = np.zeros_like(seats)
    pads = np.stack((first_rows, num_pads, seats, starts, zeros))[:, of_prompts]
    own = np.stack((first_rows + num_pads, query_lens - num_pads, seats, starts + num_pads, padding))[:, of_prompts]
    spare = np.array([[used], [num_rows - used], [0], [used - num_rows], [0]])
    segments = np.concatenate((pads, own, spare), axis=1)
    filled: IntArray = segments[:, segments[1] > 0]
    return filled
