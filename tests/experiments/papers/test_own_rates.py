"""Workloads at rates of their own: multiples of what one arm serves at most of each."""

import pandas as pd
import pytest

from experiments.papers.own_rates import run_workloads, with_multiples
from tests.study.fake_study import DEFAULTS

SHORT = {"parts": {"trace": {"num_requests": 3}}, "compared_at": 2.0}
SLOW = {"parts": {"trace": {"num_requests": 3}, "engine": {"step_time": 0.02}}, "compared_at": 2.0}
RATES = {"of": "a", "multiples": [1.0, 2.0]}


def sweep(folder, arms, rates):
    options = {"slo": {}, "device": "cpu", "output_dir": str(folder), "fresh": False, "seeds": [0]}
    return {"arms": arms, "rates": rates, **options}


def test_every_workload_has_the_multiples_of_its_own_rate(tmp_path):
    arms = {"a": {}, "b": {"scheduler": {"max_num_seqs": 2}}}
    study, cases, rates = run_workloads({"short": SHORT, "slow": SLOW}, DEFAULTS, sweep(tmp_path, arms, RATES))
    assert cases == {f"{arm}-{load}": (arm, load) for load in ("short", "slow") for arm in arms}
    assert list(study.arms) == list(cases)
    points = study.table().groupby("arm")["rate"].agg(list).map(sorted)
    assert points["a-short"] == points["b-short"]
    assert points["a-short"] == pytest.approx([2 * rate for rate in points["a-slow"]], rel=0.01)
    rows = study.table().assign(workload=[cases[arm][1] for arm in study.table()["arm"]])
    assert sorted(with_multiples(rows, rates)["multiple"]) == [1.0] * 4 + [2.0] * 4


def test_a_rate_of_no_multiple_is_left_out():
    rows = pd.DataFrame({"workload": ["x", "x", "x", "y"], "rate": [0.999, 1.5, 2.0, 6.0]})
    assert with_multiples(rows, RATES)[["rate", "multiple"]].to_numpy().tolist() == [
        [0.999, 1.0],
        [2.0, 2.0],
        [6.0, 2.0],
    ]


@pytest.mark.parametrize(
    ("workloads", "arms", "rates", "message"),
    [
        ({}, {"a": {}}, RATES, "workloads is empty"),
        ({"x": SHORT}, {"a": {}}, {**RATES, "of": "c"}, "rates.of='c' is no arm"),
        ({"x": SHORT}, {"a": {}}, [1.0], r"rates=\[1.0\] are no multiples"),
        ({"x": SHORT}, {"a": {}}, {**RATES, "multiples": [1.0]}, r"workloads.x.compared_at=2.0 is none of"),
        ({"x": SHORT}, {"a": {"trace": {}}}, RATES, "workloads.x.parts and arms.a both change trace"),
    ],
)
def test_what_makes_no_workload_is_refused(tmp_path, workloads, arms, rates, message):
    with pytest.raises(ValueError, match=message):
        run_workloads(workloads, DEFAULTS, sweep(tmp_path, arms, rates))
