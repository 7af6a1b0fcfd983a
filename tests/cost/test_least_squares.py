"""Costs that are found, and what those are that no step tells."""

import numpy as np
import pytest

from framework.cost.least_squares import huber, solve, spread_of
from framework.cost.tables import bends_of, hats

KNOTS = [1, 2, 4, 8, 16]


def line(rows):
    return 1.0 + 0.1 * np.asarray(rows)


def fitted(rows, seconds, **options):
    rows = np.array(rows)
    return solve(hats(rows, KNOTS), seconds, np.zeros(len(rows)), len(KNOTS), bends=bends_of(KNOTS, rows, seconds))


def test_an_entry_that_no_step_tells_is_on_its_neighbours_line():
    rows = [1, 1, 4, 4, 8]
    found = fitted(rows, line(rows))
    assert found[:4] == pytest.approx(line(KNOTS[:4]), rel=1e-3)
    assert line(8) < found[4] < line(16)  # an end is also drawn to the entry beside it


def test_many_steps_tell_an_entry_whatever_its_neighbours():
    rng = np.random.default_rng(0)
    rows = np.repeat(KNOTS, 50)
    seconds = np.where(rows == 4, 2.0, line(rows)) * np.exp(0.01 * rng.standard_normal(len(rows)))
    assert fitted(rows, seconds) == pytest.approx([*line([1, 2]), 2.0, *line([8, 16])], rel=0.01)


def test_few_steps_that_vary_much_are_drawn_to_the_line():
    rows = np.array([1, 1, 2, 4, 4, 8, 8, 16, 16])
    seconds = line(rows) * np.array([1.1, 0.9, 0.7, 1.1, 0.9, 1.1, 0.9, 1.1, 0.9])
    assert 0.8 * line(2) < fitted(rows, seconds)[1] < 0.99 * line(2)


def test_costs_are_never_negative_and_without_steps_they_are_nothing():
    inputs = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert solve(inputs, np.array([3.0, 2.0, 1.0]), np.zeros(3), 1)[1] == 0
    assert solve(np.zeros((0, 2)), np.zeros(0), np.zeros(0), 1).tolist() == [0, 0]


def test_errors_beyond_what_is_usual_count_less():
    errors = np.array([-0.1, 0.1, -0.1, 0.1, 5.0])
    assert spread_of(errors) == pytest.approx(0.2 * 1.4826)
    weights = huber(errors, 0.1)
    assert weights[:4].tolist() == [1.0] * 4
    assert weights[4] ** 2 == pytest.approx(1.345 * 0.1 / 5.0)
