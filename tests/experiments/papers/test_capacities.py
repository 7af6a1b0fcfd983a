"""Capacities within several limits from one set of replays, by hand."""

from functools import partial

import pytest

from experiments.papers.capacities import find_capacities, up_to_saturation
from framework.measure.capacity import Probe, Replication
from framework.measure.slo import goals_of
from framework.trace.arrivals import constant
from tests.study.fake_study import DEFAULTS


def test_one_set_of_replays_tells_the_capacity_within_every_limit(study):
    """A seat serves 4 tokens in 0.04 s: 25 requests/s. Its gaps are 0.01 s at any rate."""
    trace = partial(DEFAULTS["trace"], arrivals=partial(constant), num_requests=60)
    arms = {"one": {"scheduler": {"max_num_seqs": 1}}}
    run = study(arms, [20.0, 60.0], seeds=(0, 1), defaults=DEFAULTS | {"trace": trace})
    goals = {limit: goals_of({"itl_p99": limit, "scheduling_delay_p50": 10.0}) for limit in (0.005, 0.011)}
    rows = find_capacities(run, run.table(), goals).set_index(["arm", "limit"])
    assert rows.loc[("one", 0.005), "doubt"] == "below every rate that was probed"
    assert rows.loc[("one", 0.011), "capacity"] == pytest.approx(25, rel=0.05)
    assert rows.loc[("one", 0.011), "low"] <= 25 <= rows.loc[("one", 0.011), "high"]
    assert rows.loc[("one", 0.011), "binds"] == "saturation"


def test_rates_above_a_saturated_one_do_not_count():
    """Few replays do not show that waiting grows where it grows by very different amounts."""

    def probe(rate, *growths):
        ones = tuple(Replication(rate, seed, (1.0,), 100, growth) for seed, growth in enumerate(growths))
        return Probe(rate, ones, goals_of({"itl_p99": 1.0}))

    probes = [probe(1.0, 0.0, 0.001), probe(2.0, 0.1, 0.101), probe(3.0, 0.1, 0.9)]
    assert [one.is_saturated for one in probes] == [False, True, False]
    assert up_to_saturation(probes) == probes[:2]
    assert up_to_saturation(probes[:1]) == probes[:1]
