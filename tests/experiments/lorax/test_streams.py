"""Streams on one engine: what is measured, and what their tables say."""

from functools import partial

import pandas as pd
import pytest

from experiments.lorax.streams import DURATIONS, describe_streams, make_requests, measure_streams, stream_tables
from framework.scheduler.continuous import ContinuousScheduler
from tests.fake_engine import FakeEngine


def test_stream_tables_are_medians_and_last_tokens():
    times = {("alone", 1): [[1.0, 2.0]], ("at once", 1): [[2.0, 4.0], [2.0]], ("one after the other", 1): [[1, 3], [6]]}
    times |= {(order, count): runs for (order, one), runs in list(times.items())[1:] for count in (0, 2)}
    rows = [
        {
            "order": order,
            "num_adapters": count,
            "repeat": repeat,
            "stream": stream,
            "token": token,
            "time": time * scale,
        }
        for repeat, scale in enumerate((1.0, 9.0, 1.0))
        for (order, count), streams in times.items()
        for stream, stamps in enumerate(streams)
        for token, time in enumerate(stamps, start=1)
    ]
    tables = stream_tables(pd.DataFrame(rows))
    assert tables[DURATIONS].to_numpy().tolist() == [[count, 6.0, 4.0, 1.5] for count in (0, 1, 2)]
    assert describe_streams(tables)[:2] == [
        "one stream of 2 tokens: TTFT 1e+03 ms, 1 tokens/s",
        "2 streams with 2 adapters at once: 4 s, 1.50 times as fast as one after the other",
    ]


def test_streams_ask_in_turn_for_the_adapters():
    requests = make_requests([6, 2, 4], 8, ["one", "two"])
    assert [request.adapter_id for request in requests] == ["one", "two", "one"]
    assert [request.num_output_tokens for request in requests] == [6, 2, 4]
    assert {(request.arrival_time, request.num_prompt_tokens) for request in requests} == {(0.0, 8)}
    assert [request.adapter_id for request in make_requests([6, 2], 8, [])] == [None, None]


class ServingEngine(FakeEngine):
    num_adapter_slots = 2

    def adapter_names(self, num_adapters):
        return [f"adapter-{index}" for index in range(num_adapters)]


def test_every_token_of_every_case_is_measured():
    tokens = measure_streams(ServingEngine(), partial(ContinuousScheduler), [3, 2], 4, 1, lambda line: None)
    counts = tokens.groupby(["order", "num_adapters"])["token"].count().to_dict()
    several = {(order, count): 5 for order in ("at once", "one after the other") for count in (0, 1, 2)}
    assert counts == {("alone", 1): 3} | several
    times = tokens[tokens["num_adapters"] == 2].groupby(["order", "stream"])["time"].agg(list)
    assert times["at once"].tolist() == [pytest.approx([0.1, 0.2, 0.3]), pytest.approx([0.1, 0.2])]
    assert times["one after the other"].tolist() == [pytest.approx([0.1, 0.2, 0.3]), pytest.approx([0.4, 0.5])]


def test_streams_need_a_slot_each():
    with pytest.raises(ValueError, match="3 streams need as many adapter slots"):
        measure_streams(ServingEngine(), partial(ContinuousScheduler), [3, 2, 1], 4, 1, lambda line: None)
