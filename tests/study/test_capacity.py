"""The search for capacity on points: where it begins, what it keeps, and how requests become replications."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest

from framework.measure.capacity import Search
from framework.measure.slo import goals_of
from framework.study.arms import resolve_arms
from framework.study.capacity import depends_on_seed, modelled_twin, replications
from framework.trace.arrivals import constant
from tests.study.fake_study import DEFAULTS, build_fake_engine, run_fake_study

FAST = partial(build_fake_engine, step_time=0.01)  # eight seats, five steps a request: up to 160 requests/s
SLO = {"ttft": 0.05}


def searched(folder, capacity=True, slo=SLO, trace=None, users=None, fresh=False):
    """A sweep of one rate, then a search."""
    engine = {"engine": FAST, "trace": trace or partial(DEFAULTS["trace"], num_requests=80)}
    defaults = DEFAULTS | engine
    return run_fake_study(
        folder, {"a": {}}, [20.0], slo=slo, defaults=defaults, capacity=capacity, users=users, fresh=fresh
    )


@pytest.mark.nightly
def test_a_sweep_finds_the_capacity_of_its_arms_from_points_on_disk(tmp_path, capsys):
    search = Search(max_probes=5, tolerance=0.1)
    study = searched(tmp_path, search)
    found = study.capacities["a"].capacity
    assert not found.problem
    assert found.low < found.rate < found.high
    assert study.table()["rate"].tolist() == [20.0]  # probes are in a folder of their own
    points = sorted((tmp_path / "capacity" / "points").iterdir())
    assert len(points) == sum(len(probe.replications) for probe in study.capacities["a"].probes)
    assert [bracket["source"] for bracket in json.loads((tmp_path / "capacity" / "brackets.json").read_text()).values()]
    times = {point: point.stat().st_mtime_ns for point in points}
    again = searched(tmp_path, search).capacities["a"]
    assert again == study.capacities["a"]
    assert {point: point.stat().st_mtime_ns for point in points} == times  # nothing was replayed again


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"slo": {}}, "needs limits"),
        ({"users": [2]}, "closed loops"),
    ],
)
def test_what_has_no_capacity_is_refused(tmp_path, keywords, message):
    with pytest.raises(ValueError, match=message):
        searched(tmp_path, **keywords)


def test_too_few_requests_leave_the_points_of_the_rates(tmp_path):
    study = searched(tmp_path, trace=partial(DEFAULTS["trace"], num_requests=20))
    [problem] = study.failures
    assert problem.startswith("a: capacity needs 48 requests")
    assert "raise trace.num_requests" in problem
    assert study.table()["rate"].tolist() == [20.0]


def requests(num_requests, waiting=0.0):
    arrival = np.arange(float(num_requests))
    scheduled = arrival + waiting * arrival
    table = pd.DataFrame({"arrival_time": arrival, "scheduled_time": scheduled, "finish_time": scheduled + 1})
    return table.assign(refused=None, think_time=np.nan, ttft=np.where(arrival < 50, 9.0, 0.1))


def test_a_replay_is_one_replication_without_its_first_fifth():
    [one] = replications(requests(101, waiting=0.5), goals_of({"ttft": 1.0}), 7, 1, 2.0)
    assert (one.cluster, one.num_requests, one.rate) == (7, 81, 1.0)  # offered, whatever was asked for
    assert one.growth == pytest.approx(0.5)
    assert one.shares == (51 / 81,)


def test_a_trace_that_no_seed_changes_is_replayed_once_in_batches():
    batches = replications(requests(101), goals_of({"ttft": 1.0}), 0, 3, 1.0)
    assert [one.cluster for one in batches] == [0, 1, 2]
    assert [one.num_requests for one in batches] == [27, 27, 27]
    assert [one.shares[0] for one in batches] == [0.0, 24 / 27, 1.0]
    [arm] = resolve_arms({"a": {}}, DEFAULTS).values()
    assert depends_on_seed(arm, 4.0, 0)
    fixed = partial(DEFAULTS["trace"], arrivals=partial(constant))
    [arm] = resolve_arms({"a": {"trace": fixed}}, DEFAULTS).values()
    assert not depends_on_seed(arm, 4.0, 0)


def test_an_arm_that_no_cost_model_is_of_has_no_twin():
    [arm] = resolve_arms({"a": {}}, DEFAULTS).values()
    assert modelled_twin("a", arm, "some device") is None
