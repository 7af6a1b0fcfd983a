"""Service of clients over time, by hand."""

import numpy as np
import pandas as pd
import pytest

from experiments.papers.service import apart, differences, longest_backlog, spread, unfairness


def table(*rows):
    """Rows are (client, arrival, scheduled, token times, prompt tokens)."""
    return pd.DataFrame(
        [
            {
                "client_id": client,
                "arrival_time": arrival,
                "scheduled_time": scheduled,
                "token_times": np.array(times),
                "num_prompt_tokens": prompt,
                "num_output_tokens": len(times),
                "first_token_time": times[0],
                "finish_time": times[-1],
            }
            for client, arrival, scheduled, times, prompt in rows
        ]
    )


TWO = table(("a", 0.0, 0.0, [1.0, 3.0, 5.0], 4), ("b", 0.0, 1.0, [4.0, 6.0], 6), ("b", 9.0, 9.0, [10.0], 8))


def test_service_is_even_from_the_first_token_to_the_last():
    service = spread(TWO, np.array([0.0, 2.0]), np.array([3.0, 5.0]))
    assert service["a"].tolist() == pytest.approx([10 * 2 / 4, 10 * 3 / 4])
    assert service["b"].tolist() == pytest.approx([0.0, 10 / 2])  # of a single token there is none


def test_differences_are_of_all_service_so_far():
    lines = differences(TWO, 10.0)
    assert len(lines) == 33
    at = lines.set_index(lines["time"].round(2))["difference"]
    assert at[0.3] == pytest.approx(5.0)
    assert at[0.99] == pytest.approx(0.0)  # both got 10


def test_a_client_that_gets_what_it_asks_for_is_served_evenly():
    """Both ask for 12 in every second and get it; then the second one is served half a span later."""
    times = np.arange(100.0)
    prompt = [(client, time, time, [time + 0.01, time + 0.02], 8) for time in times for client in "ab"]
    assert unfairness(table(*prompt), 99.0) == pytest.approx(np.zeros(19), abs=3.0)
    late = [
        (client, time, time, [time + 0.01 + 50 * (client == "b"), time + 0.02 + 50 * (client == "b")], 8)
        for time in times
        for client in "ab"
    ]
    uneven = unfairness(table(*late), 99.0)
    assert uneven[:8] == pytest.approx([12.0] * 8, abs=3.0)  # b lacks 12 a second of what it asked for, as a has it
    assert uneven[11:] == pytest.approx([0.0] * 8, abs=3.0)


def test_what_two_clients_get_while_both_wait():
    """Both wait from 1 s to 6 s: a's prompt of 4 and 3 tokens make it 10 ahead, then b gets 6 + 2 · 2."""
    requests = table(
        ("a", 0.0, 1.5, [2.0, 3.0, 4.0], 4),
        ("b", 1.0, 4.0, [5.0, 5.5], 6),
        ("a", 0.5, 8.0, [9.0], 1),
        ("b", 1.0, 6.0, [7.0], 1),
    )
    assert longest_backlog(requests, ["a", "b"]) == (1.0, 6.0)
    assert apart(requests, ["a", "b"]) == 10.0
    with pytest.raises(ValueError, match="a and b never have requests waiting at the same time"):
        apart(TWO, ["a", "b"])
