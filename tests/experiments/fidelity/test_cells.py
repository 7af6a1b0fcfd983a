"""Cells × sides as arms, and what cannot be compared."""

from dataclasses import replace
from functools import partial

import pytest

from experiments.fidelity.cells import Plan, check_plan, lasting, make_arms, overloaded, seconds_to_run
from framework.core import Request, Trace
from framework.scheduler.continuous import ContinuousScheduler
from tests.study.fake_study import DEFAULTS

PLAN = Plan(reference="wall", sides=["wall", "virtual"], loads=[0.5, 1.0], seconds=4.0, repeats=5, seed=3)
SIDES = {"wall": {"clock": "wall"}, "virtual": {"clock": "virtual"}}


def test_an_arm_is_a_cell_and_a_side():
    arms = make_arms(PLAN, {"few": {"scheduler": {"max_num_seqs": 2}}, "many": {}}, SIDES, DEFAULTS)
    assert {cell: [*of_cell] for cell, of_cell in arms.items()} == {
        "few": ["few.wall", "few.virtual"],
        "many": ["many.wall", "many.virtual"],
    }
    assert [arm.clock for arm in arms["few"].values()] == ["wall", "virtual"]
    assert arms["few"]["few.wall"].scheduler.keywords["max_num_seqs"] == 2
    every = [arm for of_cell in arms.values() for arm in of_cell.values()]
    assert seconds_to_run(PLAN, every) == 4 * 4.0 * 5 * (1.0 + 1.0)


def test_repeats_have_the_same_requests_for_so_many_seconds():
    asked = []

    def trace(*, num_requests, rate, seed):
        asked.append((num_requests, rate, seed))
        return Trace([Request(0, 0.0, 1, 1)])

    for repeat in (0, 1):
        lasting(trace=partial(trace, num_requests=48), seconds=2.5, trace_seed=3, rate=10.0, seed=repeat)
    assert asked == [(25, 10.0, 3)] * 2


def test_the_overload_has_requests_for_every_seat_several_times():
    [arm] = [arm for arm in make_arms(PLAN, {"one": {}}, SIDES, DEFAULTS)["one"].values() if arm.clock == "virtual"]
    trace = partial(arm.trace.keywords["trace"].func, num_requests=1)
    arm = replace(arm, trace=partial(lasting, trace=trace, seconds=1.0, trace_seed=0))
    arm = replace(arm, scheduler=partial(ContinuousScheduler, max_num_seqs=8))
    assert overloaded(arm).trace.keywords["num_requests"] == 32


def test_sides_with_different_traces_are_refused_with_both_names():
    sides = {"wall": {"clock": "wall"}, "virtual": {"trace": {"num_requests": 7}}}
    with pytest.raises(
        ValueError, match=r"cells\.one: sides wall and virtual replay different traces: num_requests is"
    ):
        make_arms(PLAN, {"one": {}}, sides, DEFAULTS)


def test_a_component_that_both_replace_is_refused():
    whole = {"scheduler": partial(ContinuousScheduler)}
    with pytest.raises(ValueError, match=r"cells\.one and sides\.wall both replace the scheduler"):
        make_arms(PLAN, {"one": whole}, {"wall": {"scheduler": {"max_num_seqs": 3}}, "virtual": {}}, DEFAULTS)


@pytest.mark.parametrize(
    ("changes", "keywords", "message"),
    [
        ({"sides": ["wall"]}, {}, "sides are wall: two at least can be compared"),
        ({"reference": "wal"}, {}, r"reference=wal is none of the sides; did you mean 'wall'"),
        ({}, {"capacity_of": "x"}, "capacity_of=x is none of the sides"),
        ({}, {"only": ["two"]}, "only has 'two', which is no cell"),
        ({}, {"cells": {}}, "cells is empty"),
        ({}, {"cells": {"a.b": {}}}, r"cells has 'a\.b', a part of a folder's name"),
        ({"loads": [1.0, 0.5]}, {}, "give shares of the capacity, each once and in order"),
        ({"loads": [0.0]}, {}, "loads"),
        ({"seconds": 0.0}, {}, "seconds"),
        ({"repeats": 0}, {}, "repeats"),
    ],
)
def test_what_cannot_be_compared(changes, keywords, message):
    arguments = {"cells": {"one": {}}, "only": None, "capacity_of": None} | keywords
    with pytest.raises(ValueError, match=message):
        check_plan(replace(PLAN, **changes), **arguments)
