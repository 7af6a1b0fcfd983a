"""experiment=papers/preble: mean latencies by rate, and as a user calls it, on a modelled engine."""

import pandas as pd
import pytest

from experiments.papers.preble import CASE, latency_ratios


def test_ratios_are_of_equal_rates(monkeypatch):
    rows = pd.DataFrame(
        {"arm": ["round_robin"] * 2 + ["prefix_aware"] * 2, "rate": [5.0, 10.0] * 2, "e2e_mean": [0.4, 0.9, 0.2, 0.3]}
    )
    monkeypatch.setattr("experiments.papers.preble.mean_rows", lambda points, metric: points)
    table = latency_ratios(rows, capacity=10.0)
    assert table[CASE].tolist() == pytest.approx([2, 3])
    assert table["× what round_robin serves at most"].tolist() == [0.5, 1.0]
    assert table["prefix_aware (ms)"].tolist() == pytest.approx([200, 300])


@pytest.mark.nightly
def test_what_is_measured_stands_beside_what_is_reported(cli, tmp_path):
    code, output = cli("experiment=papers/preble", "engine=modelled", "tracking=none", "trace.num_requests=64")
    assert code == 0, output
    table = pd.read_csv(tmp_path / "outputs/papers/preble/comparison.csv")
    assert table["of"].tolist() == [CASE]
    assert table["measured"][0] > 0
