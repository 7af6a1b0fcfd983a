"""What each of several servers had to do, worked out by hand."""

import math

import numpy as np
import pytest

from framework.core import Request, Sequence, Step
from framework.measure.metrics import summarize
from framework.measure.replay_tables import request_table, step_table
from framework.measure.servers import imbalance, imbalance_of_load, load_over_time, server_table


def served(request_id, server, arrival_time, num_prompt_tokens, token_times, num_cached_tokens=0):
    sequence = Sequence(Request(request_id, arrival_time, num_prompt_tokens, len(token_times)))
    sequence.server, sequence.num_cached_tokens, sequence.scheduled_time = server, num_cached_tokens, arrival_time
    for time in token_times:
        sequence.append(7, time)
    return sequence


def step(start_time, elapsed, num_seqs, server):
    return Step(start_time, elapsed, "decode", num_seqs, 0, num_seqs, 0, 0, 0, 0, 0, 0.0, 0.0, elapsed, server=server)


REFUSED = Sequence(Request(3, 5.0, 900, 1))
SEQUENCES = [
    served(0, 0, 0.0, 100, [1.0, 4.0]),
    served(1, 0, 2.0, 50, [4.0], num_cached_tokens=48),
    served(2, 1, 4.0, 10, [8.0]),
]
REQUESTS = request_table([*SEQUENCES, REFUSED], {3: "too long"})
STEPS = step_table([step(0.0, 1.0, 1, server=0), step(1.0, 3.0, 2, server=0), step(4.0, 2.0, 1, server=1)])


def test_what_each_server_had_to_do_and_one_that_had_nothing():
    table = server_table(REQUESTS, STEPS, num_servers=3)
    assert table["num_requests"].tolist() == [2, 1, 0]
    assert table["num_computed_tokens"].tolist() == [100 + 2 + 50 - 48 + 1, 11, 0]
    assert table["num_cached_tokens"].tolist() == [48, 0, 0]
    assert table["busy"].tolist() == [4.0, 2.0, 0.0]
    assert table["mean_batch_size"].tolist() == [(1 * 1 + 2 * 3) / 4, 1.0, 0.0]
    assert table["ttft_p50"].tolist()[:2] == [1.5, 4.0]
    assert math.isnan(table["ttft_p50"][2])


def test_imbalance_is_the_most_over_the_mean():
    assert imbalance([3, 1, 2]) == 1.5
    assert imbalance([4, 0, 0, 0]) == 4.0
    assert math.isnan(imbalance([4]))
    assert math.isnan(imbalance([0, 0]))


def test_load_over_time_counts_from_the_arrival_to_the_last_token():
    loads = load_over_time(REQUESTS, 2, np.array([0.0, 2.0, 3.9, 4.0, 7.9, 8.0]))
    assert loads[0].tolist() == [1, 2, 2, 0, 0, 0]
    assert loads[1].tolist() == [0, 0, 0, 1, 1, 0]
    # until 4 s server 0 has all, then server 1: the most is twice the mean at any time
    assert imbalance_of_load(REQUESTS, 2, 0.0, 8.0) == pytest.approx(2.0)


def test_a_point_has_the_imbalance_of_several_servers_and_none_of_one():
    numbers = summarize(REQUESTS, STEPS, {}, num_servers=3)
    assert (numbers["num_servers"], numbers["imbalance_requests"]) == (3, 2.0)
    assert numbers["imbalance_tokens"] == pytest.approx(105 / (116 / 3))
    assert numbers["imbalance_busy"] == 2.0
    assert numbers["output_throughput_per_gpu"] == pytest.approx(4 / 8 / 3)
    assert numbers["steady_imbalance_requests"] == 1.5  # after 0.5 s, one each and one that has none
    alone = summarize(REQUESTS.assign(server=0), STEPS.assign(server=0), {})
    assert alone["num_servers"] == 1
    assert all(math.isnan(alone[f"imbalance_{part}"]) for part in ("requests", "tokens", "busy", "load"))
