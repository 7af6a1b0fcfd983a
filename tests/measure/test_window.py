"""What happens in a part of a replay of three requests, one of them refused."""

import numpy as np
import pandas as pd
import pytest

from framework.measure.window import Window

REQUESTS = pd.DataFrame(
    {
        "arrival_time": [0.0, 1.0, 2.0],
        "refused": [None, None, "too long"],
        "num_prompt_tokens": [100, 50, 10],
        "num_output_tokens": [3, 2, 4],
        "first_token_time": [1.0, 3.5, np.nan],
        "finish_time": [3.0, 4.0, np.nan],
        "ttft": [1.0, 2.5, np.nan],
        "token_times": [np.array([1.0, 1.5, 3.0]), np.array([3.5, 4.0]), np.array([])],
    }
)
STEPS = pd.DataFrame({"start_time": [0.0, 1.0, 3.0], "elapsed": [1.0, 2.0, 1.0], "num_seqs": [1, 2, 1]})


@pytest.mark.parametrize(
    ("start", "end", "offered", "num_started_steps", "num_completed", "num_output_tokens", "num_prompt_tokens"),
    [
        (0.0, 4.0, [0, 1, 2], 3, 2, 5, 150),
        (0.5, 3.0, [1, 2], 2, 1, 3, 100),  # the first request ends in it, and did not arrive in it
        (1.2, 3.2, [2], 1, 1, 2, 0),
        (5.0, 6.0, [], 0, 0, 0, 0),
    ],
)
def test_what_happens_in_a_window(
    start, end, offered, num_started_steps, num_completed, num_output_tokens, num_prompt_tokens
):
    window = Window(REQUESTS, STEPS, {}, start, end)
    assert window.duration == end - start
    assert window.offered.index.tolist() == offered
    assert len(window.started_steps) == num_started_steps
    counts = (window.num_completed, window.num_output_tokens, window.num_prompt_tokens)
    assert counts == (num_completed, num_output_tokens, num_prompt_tokens)
    assert window.served.index.tolist() == [0, 1]


def test_the_good_are_those_that_arrive_in_it_and_meet_the_slo():
    window = Window(REQUESTS, STEPS, {"ttft": 1.5}, 0.0, 4.0)
    assert window.is_met.tolist() == [True, False, False]
    assert (window.num_met, window.num_good_tokens) == (1, 3)
    later = Window(REQUESTS, STEPS, {"ttft": 1.5}, 0.5, 4.0)
    assert (later.num_met, later.num_good_tokens) == (0, 0)
