"""Service per client and Jain's index over time."""

import numpy as np
import pandas as pd
import pytest

from framework.measure.clients import NUM_WINDOWS, jain_over_time, service_over_time


def requests(clients):
    """Each client has one request of 10 prompt tokens, here from 0 s, and its tokens at the times given."""
    rows = [
        {
            "client_id": client,
            "arrival_time": 0.0,
            "num_prompt_tokens": 10,
            "first_token_time": times[0],
            "finish_time": times[-1],
            "token_times": np.array(times),
        }
        for client, times in clients
    ]
    return pd.DataFrame(rows)


def test_service_counts_prompts_once_and_output_tokens_twice():
    service = service_over_time(requests([("a", [0.5, 1.5, 19.5]), ("b", [1.5]), (None, [3.0])]), 0.0, 20.0)
    assert service.shape == (NUM_WINDOWS, 2)
    assert service["a"].tolist()[:3] == [12.0, 2.0, 0.0]
    assert service["b"].tolist()[:2] == [0.0, 12.0]
    assert service["b"][2:].isna().all()  # nothing of it is left to serve


def test_jains_index_is_of_the_clients_that_are_there():
    service = service_over_time(requests([("a", [0.5, 1.5, 19.5]), ("b", [1.5])]), 0.0, 20.0)
    index = jain_over_time(service)
    assert index.iloc[0] == pytest.approx(0.5)  # one has it all
    assert index.iloc[1] == pytest.approx((2 + 12) ** 2 / (2 * (4 + 144)))
    assert index.iloc[2:].isna().all()
