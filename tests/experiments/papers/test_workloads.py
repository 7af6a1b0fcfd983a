"""Arms times workloads: what each changes of the trace, and rows taken apart again."""

from functools import partial

import pandas as pd
import pytest

from experiments.papers.workloads import over_workloads, split_cases
from framework.study.arms import resolve_arms
from tests.study.fake_study import DEFAULTS


def test_every_arm_serves_every_workload():
    arms = resolve_arms({"a": {}, "b": {}}, DEFAULTS)
    made, cases = over_workloads(arms, {"short": {"num_requests": 2}, "long": {"num_requests": 3}})
    assert cases == {f"{arm}-{load}": (arm, load) for arm in ("a", "b") for load in ("short", "long")}
    assert [len(arm.trace(rate=1.0).requests) for arm in made.values()] == [2, 3, 2, 3]
    rows = split_cases(pd.DataFrame({"rate": [1.0], "arm": ["b-long"]}), cases)
    assert rows.to_dict("records") == [{"rate": 1.0, "arm": "b", "workload": "long"}]
    assert isinstance(made["a-short"].trace, partial)
    with pytest.raises(ValueError, match=r"unknown key 'num_request' in workloads\.short"):
        over_workloads(arms, {"short": {"num_request": 2}})
