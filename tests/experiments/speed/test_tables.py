"""What the tables and sentences of the speed studies say."""

import pandas as pd

from experiments.speed.tables import describe_serving, describe_start, factors_table, peers_table


def test_a_case_that_an_arm_could_not_hold_has_no_factor():
    rows = [
        {"arm": arm, "case": case, "device": elapsed / 2, "elapsed": elapsed}
        for arm, case, elapsed in (("a", "one", 0.004), ("b", "one", 0.002), ("b", "two", 0.008), ("c", "two", 0.002))
    ]
    serving = {arm: {"output_throughput": throughput} for arm, throughput in (("a", 100.0), ("b", 200.0), ("c", 100.0))}
    table = factors_table(pd.DataFrame(rows), serving).set_index("arm")
    assert table["one"].tolist() == ["2 / 4 (1.00×)", "1 / 2 (2.00×)", "–"]
    assert table["two"].tolist() == ["–", "4 / 8", "1 / 2 (4.00×)"]
    assert table["output tok/s"].tolist() == ["100 (1.00×)", "200 (2.00×)", "100 (0.50×)"]


def test_a_peer_that_failed_has_an_error_in_the_place_of_its_numbers():
    table = peers_table({"quick": {"output_throughput": 10.0, "ratio": 2.0, "duration": 1.0}, "slow": {"error": "no"}})
    assert table["peer"].tolist() == ["quick", "slow"]
    assert table["engine ÷ peer"].fillna(-1).tolist() == [2.0, -1]
    assert table["error"].fillna("").tolist() == ["", "no"]
    assert len(table.columns) == 4


def test_the_host_has_a_time_where_two_full_steps_follow_each_other():
    parts = {"schedule": 1e-6, "prepare": 2e-6, "update": 3e-6, "host": 6e-6, "exposed": 4e-6}
    serving = {"num_requests": 8, "num_output_tokens": 1000, "duration": 2.0, "output_throughput": 500.0, **parts}
    line = describe_serving(serving | {"num_full_steps": 5})
    assert line.startswith("8 requests at once: 1,000 output tokens in 2.00 s, 500 tok/s")
    assert "6 µs (schedule 1, prepare 2, update 3), of which the device waited 4 µs" in line
    assert "µs" not in describe_serving(serving | {"num_full_steps": 0})
    assert describe_start({"model": 1.0, "engine": 2.5}).count("1.0 s") == 1
