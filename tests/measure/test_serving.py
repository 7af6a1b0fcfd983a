"""A queue served in real time: what is counted, and which steps the host's times are of."""

from dataclasses import replace
from functools import partial

import pandas as pd
import pytest

from framework.engine.torch_engine import TorchEngine
from framework.measure.serving import host_times, max_num_seqs_of, measure_serving
from framework.scheduler.continuous import ContinuousScheduler
from tests.engine.torch_engine.hand_schedules import make_requests
from tests.engine.torch_engine.test_engine import GPT2_CONFIG, make_engine


@pytest.fixture(params=[None, "int8"])
def engine(request) -> TorchEngine:
    return make_engine(config=GPT2_CONFIG | {"n_embd": 32, "n_head": 2, "n_layer": 2}, kv_dtype=request.param)


def test_the_most_sequences_are_the_schedulers():
    assert max_num_seqs_of(partial(ContinuousScheduler, max_num_seqs=7)) == 7


def test_serving_counts_the_tokens_of_the_requests(engine):
    requests = make_requests([7, 7, 1, 12], [4, 6, 8, 8])
    serving = measure_serving(engine, partial(ContinuousScheduler, max_num_seqs=4), requests)
    assert (serving["num_requests"], serving["num_prompt_tokens"], serving["num_output_tokens"]) == (4, 27, 26)
    assert serving["output_throughput"] == 26 / serving["duration"]
    assert serving["num_full_steps"] == 2  # of three decode steps with all four
    assert serving["exposed"] > 0


def test_serving_waits_for_no_arrival(engine):
    requests = [replace(one, arrival_time=30.0 * one.request_id) for one in make_requests([7, 7], [4, 6])]
    serving = measure_serving(engine, partial(ContinuousScheduler, max_num_seqs=4), requests)
    assert serving["num_output_tokens"] == 10
    assert serving["duration"] < 30.0


def test_host_times_are_of_full_decode_steps_that_another_follows():
    columns = ("start_time", "phase", "num_seqs", "schedule", "prepare", "device", "update")
    steps = pd.DataFrame(
        [
            (0.0, "prefill", 10, 9.0, 9.0, 9.0, 9.0),
            (10.0, "decode", 10, 0.1, 0.2, 3.0, 0.4),
            (14.0, "decode", 9, 0.2, 0.3, 3.0, 0.5),
            (20.0, "decode", 9, 9.0, 9.0, 9.0, 9.0),  # the next one has too few
            (40.0, "decode", 8, 9.0, 9.0, 9.0, 9.0),
        ],
        columns=columns,
    )
    times = host_times(steps, 10)
    assert times["num_full_steps"] == 2
    assert times["exposed"] == 2.0  # (14 - 10 - 3, 20 - 14 - 3) → 1 and 3
    assert times["host"] == pytest.approx((0.7 + 1.0) / 2)
    assert times["schedule"] == pytest.approx(0.15)
