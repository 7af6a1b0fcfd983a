"""Where tables have their entries, and how far these bend."""

import numpy as np
import pytest

from framework.cost.tables import (
    bends_of,
    choose_far_knots,
    choose_knots,
    choose_near_knots,
    differences_of,
    hats,
    padded,
    shares_of_long,
)

SIZES = [1, 2, 4, 8]


def test_rows_are_those_of_the_next_graph():
    assert [padded(num_rows, SIZES) for num_rows in (1, 3, 8, 9)] == [1, 4, 8, 9]


def test_entries_are_at_graphs_at_both_ends_and_one_in_each_bin():
    knots = choose_knots(np.array([1, 2, 4, 20, 21, 22, 100]), SIZES)
    assert knots == [1, 2, 4, 21, 100]
    assert choose_far_knots(np.array([2, 30])) == [2, 4, 16, 30]


def test_a_step_between_two_entries_has_some_of_both():
    assert hats(np.array([1, 3, 9]), [1, 5]).tolist() == [[1, 0], [0.5, 0.5], [0, 1]]


def test_a_longest_sequence_takes_longer_up_to_some_length():
    assert choose_near_knots(np.array([3, 20])) == [3, 4, 8, 16, 20]
    assert shares_of_long(np.array([32.0, 64.0, 500.0]), 64).tolist() == [0.5, 1.0, 1.0]


def test_bends_are_shares_of_a_step():
    rows, seconds = np.array([1, 8]), np.array([2.0, 2.0])
    bends = bends_of(SIZES, rows, seconds)
    assert bends.shape == (5, 4)
    assert bends @ np.array(SIZES) == pytest.approx([0, 0, -0.05, -0.1, -0.2])
    assert bends[:2] @ np.array([1.0, 1.0, 2.0, 1.0]) == pytest.approx([-1 / 6, 0.5])
    assert bends_of([1, 8], rows, seconds).shape == (1, 2)
    assert (differences_of(3, 0.5) @ np.array([1.0, 3.0, 3.0])).tolist() == [-1.0, 0.0]
