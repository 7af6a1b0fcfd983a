"""Predicted output lengths: an error that is as large as it was asked to be."""

from functools import partial

import numpy as np
import pytest
from scipy.stats import kendalltau

from framework.core import Request, Trace
from framework.trace.files import read_table
from framework.trace.predictions import classes, kendall, predict
from framework.trace.recorded import recorded

LENGTHS = np.random.default_rng(5).integers(1, 2000, size=4000)


@pytest.mark.parametrize("tau", [-0.5, 0.0, 0.54, 0.9])
def test_the_rank_correlation_is_what_was_asked_for(tau):
    predicted = kendall(np.random.default_rng(0), LENGTHS, tau=tau)
    assert kendalltau(predicted, LENGTHS).statistic == pytest.approx(tau, abs=0.03)
    assert sorted(predicted) == sorted(LENGTHS)


def test_a_perfect_predictor_knows_and_a_perverse_one_reverses():
    lengths = np.array([5, 1, 9, 9, 3])
    assert kendall(np.random.default_rng(0), lengths, tau=1.0).tolist() == lengths.tolist()
    assert kendall(np.random.default_rng(0), np.array([5, 1, 9, 3]), tau=-1.0).tolist() == [3, 9, 1, 5]


def test_classes_are_of_equal_width_up_to_the_longest():
    lengths = np.array([1, 10, 11, 95, 100, 50, 51])
    assert classes(np.random.default_rng(0), lengths, num_classes=10).tolist() == [10, 10, 20, 100, 100, 50, 60]
    assert classes(np.random.default_rng(0), np.array([1, 2, 3]), num_classes=10).tolist() == [1, 2, 3]


def test_a_trace_has_them_as_a_column_and_changes_in_nothing_else():
    make = partial(recorded, reader=read_table, path="traces/sample.csv")
    trace = make(predictions=partial(kendall, tau=1.0), seed=3)
    assert [one.num_predicted_tokens for one in trace.requests] == [one.num_output_tokens for one in trace.requests]
    assert [one.num_output_tokens for one in trace.requests] == [one.num_output_tokens for one in make().requests]
    noisy = partial(make, predictions=partial(kendall, tau=0.5))
    assert noisy(seed=3) == noisy(seed=3) != noisy(seed=4)


def test_no_predictor_leaves_what_there_is():
    trace = Trace([Request(0, 0.0, 4, 9, num_predicted_tokens=7)])
    assert predict(trace, None, np.random.default_rng(0)) is trace


@pytest.mark.parametrize(
    ("predictor", "problem"),
    [
        (partial(kendall, tau=1.5), r"predictions.tau=1.5 is not from -1 to 1"),
        (partial(classes, num_classes=0), "predictions.num_classes=0 is not a whole number of at least 1"),
    ],
)
def test_their_keys_are_checked(predictor, problem):
    with pytest.raises(ValueError, match=problem):
        predictor(np.random.default_rng(0), LENGTHS)
