"""Latencies over those of requests that meet no other, by hand."""

from functools import partial

import pytest

from experiments.papers.slowdown import check_limits, goals_of_slowdowns, read_slowdowns, replay_alone, slowdown_rows
from framework.study.arms import resolve_arms
from framework.trace.arrivals import constant
from tests.study.fake_study import DEFAULTS

TRACE = partial(DEFAULTS["trace"], arrivals=partial(constant), num_requests=4)


def test_a_request_that_waits_as_long_as_it_takes_is_twice_as_slow(study, tmp_path):
    """A seat serves 4 tokens in 0.04 s; requests come every 0.02 s, so that number n waits 0.02 n s."""
    arms = {"one": {"scheduler": {"max_num_seqs": 1}}}
    defaults = DEFAULTS | {"trace": TRACE}
    run = study(arms, [50.0], seeds=(3,), defaults=defaults)
    sweep = {"rates": [50.0], "seeds": [3], "slo": {}, "device": "cpu", "output_dir": str(tmp_path), "fresh": False}
    alone = replay_alone("alone", resolve_arms(arms, defaults)["one"], sweep)
    assert alone[3]["e2e"].tolist() == pytest.approx([0.04] * 4)
    (row,) = run.table().to_dict("records")
    slowdowns = read_slowdowns(run, alone, row).set_index("request_id").sort_index()
    assert slowdowns["e2e_slowdown"].tolist() == pytest.approx([1, 1.5, 2, 2.5])
    assert slowdowns["ttft_slowdown"].tolist() == pytest.approx([1, 3, 5, 7])
    assert slowdowns["tpot_slowdown"].tolist() == pytest.approx([1] * 4)
    rows = slowdown_rows(run, alone, run.table()).set_index(["latency", "share"])["slowdown"]
    assert rows["e2e", 0.5] == pytest.approx(1.75)
    assert len(run.table()) == 1  # what ran alone is no point of the study


def test_a_scale_allows_so_many_times_the_excess():
    goals = goals_of_slowdowns({"tpot": [1.25, 1.5, 5]}, 2)
    assert [goal.limits for goal in goals] == [(("tpot_slowdown", allowed),) for allowed in (1.5, 2.0, 9.0)]
    assert [goal.share for goal in goals] == [0.5, 0.9, 0.99]
    assert goals[2].label == "TPOT P99 ≤ 9×"


@pytest.mark.parametrize("limits", [{}, {"tbt": [2, 3, 6]}, {"ttft": [2, 3]}, {"ttft": [1, 2, 3]}])
def test_limits_are_three_above_1_of_a_latency(limits):
    with pytest.raises(ValueError, match="limits"):
        check_limits(limits)
