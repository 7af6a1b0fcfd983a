"""Rows grouped by adapter: every row in one tile, and never more tiles than lora_delta launches."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from framework.kernels.lora import segments


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.sampled_from([1, 4, 16, None]))
def test_every_row_is_in_one_tile_of_its_slot(slots, block_m):
    slots = np.array(slots)
    order, tile_slots, starts, lengths = segments(slots, block_m)
    assert sorted(order) == list(range(len(slots)))
    seen = []
    for slot, start, length in zip(tile_slots, starts, lengths, strict=True):
        rows = order[start : start + length]
        assert (slots[rows] == slot).all()
        assert length <= (block_m or len(slots))
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(slots)))
    num_tiles = np.count_nonzero(lengths)
    assert (lengths[num_tiles:] == 0).all()
    if block_m:  # as many as lora_delta launches at most
        assert num_tiles <= min(len(slots), len(slots) // block_m + 6)
    else:
        assert num_tiles == len(set(slots.tolist()))
