"""What is said at the end of a sweep."""

from types import SimpleNamespace

import pandas as pd

from framework.report.finish import limits


def test_a_capacity_above_what_the_arm_served_is_said_to_be_of_a_short_replay():
    columns = ["arm", "rate", "slo_attainment", "waiting_growth", "sustained_throughput", "num_requests"]
    points = pd.DataFrame(
        [
            ("short", 48.0, 0.95, 0.05, 30.0, 64),
            ("short", 96.0, 0.5, 1.0, 42.0, 64),
            ("long", 24.0, 1.0, 0.0, 24.0, 640),
            ("long", 96.0, 0.5, 1.0, 42.0, 640),
        ],
        columns=columns,
    )
    short, long = limits(SimpleNamespace(slo={"ttft": 0.5}), points)
    assert "served at most 42 req/s" in short
    assert "48 req/s; above what it served" in short
    assert long.endswith("within TTFT ≤ 500 ms: 24 req/s")
