"""Transforms: what each keeps, changes and counts, and what it refuses."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.core import Request, Trace
from framework.trace.transforms import (
    clip,
    cut_gaps,
    first,
    mean_rate,
    restart,
    stretch,
    thin,
    window,
)


def make(*times: float) -> Trace:
    return Trace([Request(index, time, 10 + index, 5) for index, time in enumerate(times)], {"failed": 2})


def ids(trace: Trace) -> list[int]:
    return [request.request_id for request in trace.requests]


def times(trace: Trace) -> list[float]:
    return [request.arrival_time for request in trace.requests]


def test_window_includes_its_start_and_excludes_its_end() -> None:
    trace = make(0, 1, 2, 3)
    assert ids(window(trace, 1, 3)) == [1, 2]
    assert ids(window(trace, 2, None)) == [2, 3]
    assert ids(window(trace, None, 2)) == [0, 1]
    assert times(window(trace, 1, 3)) == [1, 2]
    assert window(trace, 1, 3).dropped == {"failed": 2}


@pytest.mark.parametrize(("start", "end"), [(2, 2), (3, 1), (-1, 2), (math.nan, 2), (math.inf, None), (0, math.nan)])
def test_window_refuses_what_is_no_span(start: float, end: float | None) -> None:
    with pytest.raises(ValueError, match="is not a span of seconds with 0 <= start < end"):
        window(make(0, 1), start, end)


def test_window_without_requests() -> None:
    with pytest.raises(ValueError, match=r"window=\[1.5, 1.8\] holds no request; the trace spans 0 to 2 s"):
        window(make(0, 1, 2), 1.5, 1.8)


def test_first() -> None:
    assert ids(first(make(0, 1, 2), 2)) == [0, 1]
    with pytest.raises(ValueError, match="num_requests=4, but the trace has only 3"):
        first(make(0, 1, 2), 4)
    with pytest.raises(ValueError, match="num_requests=0 is not a whole number of at least 1"):
        first(make(0, 1, 2), 0)


@given(st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=30), st.floats(1e-3, 1e3))
def test_stretch_reaches_the_rate_and_keeps_the_shape(gaps: list[float], rate: float) -> None:
    trace = make(*[3 + sum(gaps[:index]) for index in range(len(gaps) + 1)])
    stretched = stretch(trace, rate)
    assert mean_rate(stretched) == pytest.approx(rate)
    ratio = mean_rate(trace) / rate
    assert times(stretched) == pytest.approx([time * ratio for time in times(trace)])
    assert ids(stretched) == ids(trace)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_rates_are_positive_and_finite(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate=.* is not a finite number above 0"):
        stretch(make(0, 1), rate)
    with pytest.raises(ValueError, match=r"rate=.* is not a finite number above 0"):
        thin(make(0, 1), rate, seed=0)


def test_a_trace_without_span_has_no_rate() -> None:
    for trace in (make(5), make(5, 5, 5)):
        with pytest.raises(ValueError, match=rf"trace of {len(trace.requests)} request\(s\) that span 0 s"):
            stretch(trace, 1.0)


def test_thin_keeps_the_expected_share_with_its_times() -> None:
    trace = make(*[index / 10 for index in range(10_001)])  # 10 requests/s
    thinned = thin(trace, 3.0, seed=1)
    assert mean_rate(thinned) == pytest.approx(3.0, rel=0.05)
    assert all(request == trace.requests[request.request_id] for request in thinned.requests)
    assert thin(trace, 3.0, seed=1) == thinned
    assert thin(trace, 3.0, seed=2) != thinned
    assert set(ids(thin(trace, 2.0, seed=1))) < set(ids(thinned))
    assert thin(trace, mean_rate(trace), seed=1) == trace


def test_thin_cannot_raise_the_rate() -> None:
    with pytest.raises(
        ValueError, match=r"raise the arrival rate to 2 requests/s: the trace has 1; use rescale=stretch"
    ):
        thin(make(0, 1, 2), 2.0, seed=0)


def test_thin_to_nothing() -> None:
    with pytest.raises(ValueError, match=r"from 1 to 1e-09 requests/s left none of 3 requests"):
        thin(make(0, 1, 2), 1e-9, seed=0)


def test_clip_cuts_prompt_with_its_prefix_and_output() -> None:
    request = Request(0, 0.0, 1500, 9, "a", 1, "s", (1, 2, 3), tuple(range(1500)))
    (clipped,) = clip(Trace([request]), 1024, 4).requests
    assert clipped == Request(0, 0.0, 1024, 4, "a", 1, "s", (1, 2), tuple(range(1024)))
    assert clip(Trace([request]), 1025).requests[0].prefix_ids == (1, 2, 3)
    assert clip(Trace([request])).requests == [request]
    assert clip(Trace([request]), 1500, 9).requests == [request]


@pytest.mark.parametrize("limit", [0, -1, 2.5, True])
def test_clip_limits_are_whole(limit: int) -> None:
    with pytest.raises(ValueError, match=r"max_prompt_tokens=.* is not a whole number of at least 1"):
        clip(make(0), max_prompt_tokens=limit)
    with pytest.raises(ValueError, match=r"max_output_tokens=.* is not a whole number of at least 1"):
        clip(make(0), max_output_tokens=limit)


def test_restart() -> None:
    restarted = restart(window(make(0, 1, 2.5), 1, None))
    assert (ids(restarted), times(restarted)) == ([0, 1], [0, 1.5])
    assert [request.num_prompt_tokens for request in restarted.requests] == [11, 12]


def test_a_single_request_has_no_rate_but_the_recorded_one() -> None:
    with pytest.raises(ValueError, match=r"no arrival rate to rescale: set rates=\[null\]"):
        stretch(Trace([Request(0, 0.0, 4, 2)]), 1.0)


def test_silences_are_cut_and_other_gaps_stay() -> None:
    trace = Trace([Request(index, time, 4, 4) for index, time in enumerate([1.0, 2.0, 12.0, 12.0, 15.5])])
    assert [one.arrival_time for one in cut_gaps(trace, 3.0).requests] == [1.0, 2.0, 5.0, 5.0, 8.0]
    with pytest.raises(ValueError, match="max_gap=0 is not a finite number above 0"):
        cut_gaps(trace, 0)
