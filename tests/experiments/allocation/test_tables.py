"""Shares of the KV cache, means over time and what stands beside a source's numbers, by hand."""

import pandas as pd
import pytest

from experiments.allocation.tables import (
    MEMORY,
    cost_table,
    describe,
    memory_table,
    point_row,
    shares_of,
)

REPORTED = {"max": {"tokens": 20.0, "running": 2.0}, "paged": {"running": 6.0}}


def make_steps() -> pd.DataFrame:
    """A cache of 10 blocks of 4 slots; the last step comes after the last admission."""
    columns = {
        "start_time": [0.0, 1.0, 4.0],
        "elapsed": [1.0, 3.0, 1.0],
        "num_seqs": [2, 6, 1],
        "num_used_blocks": [5, 8, 0],
        "num_cached_blocks": [1, 0, 0],
        "num_adapter_blocks": [2, 2, 0],
        "num_token_slots": [8, 24, 0],
        "num_reserved_slots": [8, 8, 0],
        "num_lost_slots": [4, 0, 0],
        "num_free_slots": [8, 0, 40],
        "num_swapped_out_blocks": [3, 0, 0],
        "num_swapped_in_blocks": [0, 2, 1],
        "swap_wait": [0.5, 0.0, 0.5],
    }
    return pd.DataFrame(dict.fromkeys(MEMORY, 0) | columns)


def make_rows() -> pd.DataFrame:
    times = {"request_throughput": 2.0, "e2e_mean": 3.0, "normalized_latency_mean": 0.1, "num_preemptions": 4.0}
    rest = {"rate": 8.0, "offered_rate": 8.0, "num_swaps": 3.0, **times}
    one = {"arm": "max", **rest, **point_row(make_steps(), 1.0)}
    return pd.DataFrame([one, one | {"arm": "paged", "running": 10.0, "tokens": 0.9, "request_throughput": 3.0}])


def test_shares_of_all_slots_add_up():
    shares = shares_of(make_steps())
    assert shares.sum(axis="columns").tolist() == pytest.approx([1.0] * 3)
    assert shares.iloc[0].tolist() == pytest.approx([0.2, 0.2, 0.1, 0.1, 0.2, 0.2])
    assert shares["free"].tolist() == pytest.approx([0.2, 0.0, 1.0])


def test_means_are_over_time_and_end_with_the_last_admission():
    row = point_row(make_steps(), last_admission=1.0)
    assert row["tokens"] == pytest.approx((0.2 + 3 * 0.6) / 4)
    assert row["running"] == pytest.approx((2 + 3 * 6) / 4)
    assert (row["num_copied_blocks"], row["swap_wait"]) == (6, pytest.approx(1 / 5))


def test_a_part_that_nothing_is_in_has_no_column():
    table = memory_table(make_rows().assign(cached=0.0))
    assert list(table)[2:] == [
        *("tokens (%)", "reserved (%)", "lost (%)", "adapters (%)", "free (%)"),
        "tokens, of what requests hold (%)",
    ]
    assert table["tokens, of what requests hold (%)"][0] == pytest.approx(100 * 0.5 / (0.5 + 0.2 + 0.025))


def test_costs_and_their_description():
    table = cost_table(make_rows(), "max")
    assert table["÷ max"].tolist() == [1.0, 1.5]
    assert table["waited for copies (% of the time)"].tolist() == pytest.approx([20, 20])
    assert describe(make_rows())[1] == (
        "paged: 90.0% of the KV cache's slots hold tokens, 10 requests run, 3 req/s; 4 preemptions, 3 of them by swap"
    )
