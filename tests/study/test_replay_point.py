"""A point's way: a bad trace fails before a model loads, what is dropped is told, and what a replay leaves."""

import io
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from rich.console import Console

from framework.core import Request, Trace
from framework.study.arms import resolve_arms
from framework.study.engine_cache import EngineCache
from framework.study.points import Point
from framework.study.progress import SweepProgress
from framework.study.replay_point import replay_point
from tests.study.fake_study import DEFAULTS, LOADED


def three_requests(*, rate, seed, max_model_len=None) -> Trace:
    """One every second, of 4 + 2 tokens."""
    return Trace([Request(index, float(index), 4, 2) for index in range(3)], {"too long": 5})


def all_at_once(*, rate, seed, max_model_len=None) -> Trace:
    return Trace([Request(index, 0.0, 4, 2) for index in range(3)])


def bad_trace(*, rate, seed, max_model_len=None) -> Trace:
    raise ValueError("a bad trace")


def replayed(trace, **components):
    arm = replace(resolve_arms({"only": components}, DEFAULTS)["only"], trace=partial(trace))
    console = Console(file=io.StringIO(), width=100)
    engines = EngineCache(torch.device("cpu"), lambda message: None)
    with SweepProgress(console, num_points=1) as progress:
        result = replay_point(Point("only", None, 0, "digest"), arm, engines, progress)
    return result, console.file.getvalue()


def test_a_replay_leaves_tables_and_what_was_replayed_on_what():
    result, output = replayed(three_requests)
    assert result.trace == {"num_requests": 3, "dropped": {"too long": 5}, "offered_rate": 1.0}
    assert result.requests["ttft"].tolist() == pytest.approx([0.01] * 3)
    assert result.steps["phase"].tolist() == ["prefill", "decode"] * 3
    assert result.engine["num_blocks"] == 1000
    assert "5 requests dropped: too long" in output


def test_the_rate_of_requests_that_come_at_once_is_infinite():
    assert replayed(all_at_once)[0].trace["offered_rate"] == math.inf


def test_a_bad_trace_fails_before_a_model_loads():
    LOADED.clear()
    with pytest.raises(ValueError, match="a bad trace"):
        replayed(bad_trace)
    assert LOADED == []


def test_an_arm_may_have_several_servers_which_share_the_requests():
    result, _ = replayed(three_requests, servers=2)
    assert result.requests["ttft"].tolist() == pytest.approx([0.01] * 3)
    assert result.steps["server"].tolist() == [0, 0, 1, 1, 0, 0]
    assert result.steps["start_time"].is_monotonic_increasing


def only_the_last(servers):
    return lambda sequence: servers[-1]


def test_an_arm_may_have_another_router():
    result, _ = replayed(three_requests, servers=3, router=partial(only_the_last))
    assert result.steps["server"].tolist() == [2] * 6


@pytest.mark.parametrize("servers", [0, -1, 1.5, True, "two"])
def test_a_number_of_servers_that_is_none_is_refused(servers):
    with pytest.raises(ValueError, match=r"arms\.only\.servers=.* is not a whole number of at least 1"):
        resolve_arms({"only": {"servers": servers}}, DEFAULTS)
