"""Per-adapter numbers and Jain's index on requests worked out by hand."""

import pandas as pd
import pytest

from framework.measure.fairness import adapter_table, fairness

NAN = float("nan")


def requests(*rows):
    """(adapter, TTFT, normalized latency, load wait, prompt tokens, output tokens) each."""
    columns = ["adapter_id", "ttft", "normalized_latency", "adapter_load_wait", "num_prompt_tokens"]
    return pd.DataFrame(rows, columns=[*columns, "num_output_tokens"]).assign(request_id=range(len(rows)), refused=None)


def test_one_row_per_adapter_the_most_requested_first():
    table = adapter_table(
        requests(
            ("a", 1.0, 0.5, 0.0, 10, 2),
            ("b", 2.0, 0.1, 0.4, 20, 3),
            (None, 4.0, 0.2, 0.0, 5, 1),
            ("b", 4.0, 0.3, 0.0, 30, 4),
        )
    )
    assert table["adapter_id"].tolist() == ["b", "a", "none"]
    assert table["num_requests"].tolist() == [2, 1, 1]
    assert table["num_tokens"].tolist() == [57, 12, 6]
    assert table["ttft_mean"].tolist() == [3.0, 1.0, 4.0]
    assert table["ttft_p99"].tolist() == pytest.approx([3.98, 1.0, 4.0])
    assert table["normalized_latency_mean"].tolist() == pytest.approx([0.2, 0.5, 0.2])
    assert table["load_wait_mean"].tolist() == pytest.approx([0.2, 0.0, 0.0])


def test_jains_index_counts_adapters_and_load_waits_count_requests():
    even = fairness(adapter_table(requests(*[(name, 1.0, 0.3, 0.1, 1, 1) for name in "aabc"])))
    assert even["num_adapters"] == 3
    assert even["jain_index"] == pytest.approx(1.0)
    assert even["max_min_ratio"] == 1.0
    served = [("a", 1.0, 1.0, 0.0, 1, 1), ("a", 1.0, 1.0, 0.0, 1, 1), ("b", 1.0, 3.0, 3.0, 1, 1)]
    uneven = fairness(adapter_table(requests(*served)))
    assert uneven["jain_index"] == pytest.approx((1 + 3) ** 2 / (2 * (1 + 9)))
    assert uneven["max_min_ratio"] == 3.0
    assert uneven["load_wait_mean"] == 1.0


def test_adapters_that_are_refused_have_a_row_and_are_not_served_unfairly():
    served = requests(("a", 1.0, 1.0, 0.0, 5, 1), ("b", 1.0, 3.0, 3.0, 5, 1), ("b", NAN, NAN, NAN, 5, 0))
    gone = requests(("c", NAN, NAN, NAN, 5, 0))
    table = adapter_table(pd.concat([served.assign(refused=[None, None, "long"]), gone.assign(refused="no c")]))
    assert table["adapter_id"].tolist() == ["b", "a", "c"]
    assert table["num_requests"].tolist() == [2, 1, 1]
    assert table["num_refused"].tolist() == [1, 0, 1]
    assert table["num_tokens"].tolist() == [6, 6, 0]
    numbers = fairness(table)
    assert numbers["num_adapters"] == 2
    assert numbers["jain_index"] == pytest.approx((1 + 3) ** 2 / (2 * (1 + 9)))
    assert numbers["load_wait_mean"] == 1.5
