"""What the gathered strategy adds is what each row's own A and B give."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from framework.lora import gathered
from framework.lora.gathered import Gathered, padded_tiles, rows_per_copy
from tests.lora.deltas import CASES, delta, make_pool


@pytest.mark.parametrize("slots", CASES.values(), ids=CASES)
def test_every_row_has_its_own_adapter(slots):
    found, expected = delta(Gathered, slots)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert (found[slots == 0] == 0).all()
    assert (found[slots > 0] != 0).any(dim=1).all()


@pytest.mark.parametrize("slots", CASES.values(), ids=CASES)
def test_shapes_that_hold_for_any_adapters(monkeypatch, slots):
    """As on a GPU, where a graph has them."""
    monkeypatch.setattr(gathered, "has_fixed_shapes", lambda x: True)
    found, expected = delta(Gathered, slots)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["in turns", "prompts"])
def test_tiles_beyond_the_memory_limit_are_gathered_in_parts(monkeypatch, name):
    whole, _ = delta(Gathered, CASES[name])
    monkeypatch.setattr(gathered, "MAX_GATHERED_BYTES", 1)  # one tile at a time
    torch.testing.assert_close(delta(Gathered, CASES[name])[0], whole)


def test_rows_of_a_prompt_share_a_copy():
    pool = make_pool(Gathered)
    slots, lengths, places = pool.step_tables(np.repeat([3, 1], [4, 6]))
    assert slots[:3].tolist() == [1, 1, 3]
    assert lengths.tolist() == [5, 1, 4, *7 * [0]]
    assert places.tolist() == [10, 11, 12, 13, 0, 1, 2, 3, 4, 5]
    slots, lengths, places = pool.step_tables(np.array([3, 1, 2]))  # decoding: as the rows come
    assert (slots.tolist(), lengths.tolist(), places.tolist()) == ([3, 1, 2], [1, 1, 1], [0, 1, 2])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.sampled_from([None, 6, 20]))
def test_every_row_has_a_place_in_a_tile_of_its_slot(slots, num_slots):
    slots = np.array(slots)
    num_groups = len(set(slots.tolist())) if num_slots is None else num_slots
    num_places = rows_per_copy(len(slots), num_groups)
    tile_slots, lengths, places = padded_tiles(slots, num_places)
    tiles = places // num_places
    assert (tile_slots[tiles] == slots).all()
    assert len(set(places.tolist())) == len(slots)
    assert (places % num_places < lengths[tiles]).all()
    assert np.bincount(tiles, minlength=len(slots)).tolist() == lengths.tolist()
    num_tiles = np.count_nonzero(lengths)
    assert (lengths[:num_tiles] > 0).all()
    assert num_tiles <= min(len(slots), len(slots) // num_places + num_groups)  # as many as there are with fixed shapes
    if num_slots is None:  # what a CPU reads from the tables
        assert lengths.max() == num_places
        assert num_tiles * num_places <= 2 * len(slots)
