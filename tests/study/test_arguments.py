"""What a study refuses before anything is replayed, with the value and what is allowed."""

import math
from functools import partial

import pytest

from framework.measure.capacity import Search
from framework.study.arguments import MAX_RATE, check_points, check_search
from framework.trace.files import read_table
from framework.trace.recorded import recorded


@pytest.mark.parametrize(
    ("arms", "rates", "seeds", "problem"),
    [
        ({}, [1.0], [0], "arms is empty: a study needs at least one"),
        ({"a": 1}, [], [0], "rates is empty"),
        ({"a": 1}, [1.0], [], "seeds is empty"),
        ({"a": 1}, [math.inf], [0], r"rates=\[inf\]: .* set rates=\[null\]"),
        ({"a": 1}, [0.0], [0], "positive finite numbers of requests/s .* not 0.0"),
        ({"a": 1}, [2 * MAX_RATE], [0], r"at most 1,000,000 requests/s, not 2e\+06"),
        ({"a": 1}, [1.0], [-1], "seeds must be at least 0, not -1"),
        ({"arm": 1}, {"of": "amr", "multiples": [1.0]}, [0], "rates.of='amr' is no arm.*arm"),
        ({"a": 1}, {"of": "a", "multiples": []}, [0], r"rates.multiples=\[\]: give at least one"),
        ({"a": 1}, {"of": "a", "multiples": [0.0]}, [0], "each a finite number above 0"),
        ({"a": 1}, {"of": "a", "multiples": [math.inf]}, [0], "each a finite number above 0"),
    ],
)
def test_points_that_are_none_are_refused(arms, rates, seeds, problem):
    with pytest.raises(ValueError, match=problem):
        check_points(arms, rates, seeds)


@pytest.mark.parametrize("rates", [[None, MAX_RATE], "auto", {"of": "a", "multiples": [0.5, 2.0]}])
def test_points_that_can_be_are_not(rates):
    check_points({"a": 1}, rates, [0, 1])


@pytest.mark.parametrize(
    ("slo", "users", "problem"),
    [({"ttft": 0.5}, [1], r"users=\[1\] makes closed loops"), ({}, None, "capacity needs limits that have to hold")],
)
def test_a_search_needs_arrivals_and_limits(slo, users, problem):
    with pytest.raises(ValueError, match=problem):
        check_search(slo, Search(), users)
    check_search(slo, None, users)
    check_search({"ttft": 0.5}, Search(), None)


@pytest.mark.parametrize(
    ("users", "problem"),
    [([], "users is empty"), ([0], "users=0 is not a whole number"), ([True], "users=True is not")],
)
def test_numbers_of_users_that_are_none_are_refused(study, users, problem):
    with pytest.raises(ValueError, match=problem):
        study({"a": {}}, "auto", users=users)


def test_a_trace_that_makes_no_closed_loop_is_refused(study):
    trace = partial(lambda *, rate, seed: None)
    with pytest.raises(ValueError, match=r"users=\[1\]: the trace of arms\.a takes no max_concurrency"):
        study({"a": {"trace": trace}}, "auto", users=[1])


def test_two_numbers_of_users_are_refused(study):
    trace = partial(recorded, reader=partial(read_table), path="mine.csv", max_concurrency=5)
    with pytest.raises(ValueError, match=r"users=\[2\] and trace.max_concurrency=5 both say how many"):
        study({"a": {"trace": trace}}, "auto", users=[2])
