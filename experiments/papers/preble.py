"""Where a prompt's beginning was sent before, against round robin: the mean latencies of Preble (ICLR 2025)."""

from functools import partial

import pandas as pd
from typing_extensions import Unpack

from experiments.cluster.study import find as find_routers
from experiments.papers.comparison import with_comparison
from experiments.papers.sustained import base_of, mean_rows
from framework.build import MakeScheduler
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.study.arguments import Sweep
from framework.study.arms import parts_of, resolve_arms
from framework.study.auto_rates import Rates
from framework.study.sweep import Study, run_study

BASE, AWARE = "round_robin", "prefix_aware"
CASE = f"{BASE} ÷ {AWARE}"
BY_RATE = "Mean latency by rate"


def run(*, scheduler: MakeScheduler, clock: Clock, **sweep: Unpack[Sweep]) -> None:
    """Replay both routers at every rate, multiples of what one serves at most, and compare their mean latencies."""
    rates = sweep["rates"]
    base_of(rates, pd.DataFrame({"rate": [1.0]}))
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"scheduler": scheduler, "clock": clock})
    study = run_study(arms, sweep)
    finish_sweep(study, "preble", partial(find, study, rates))
    study.raise_failures()


def find(study: Study, rates: Rates, points: pd.DataFrame) -> Findings:
    table = latency_ratios(points, base_of(rates, points)[1])
    findings = find_routers(study, points)
    found = Findings(
        findings.figures,
        {BY_RATE: table, **findings.tables},
        findings.notes,
        findings.definitions,
        {"ratios.csv": table},
    )
    return with_comparison("preble", {"latency": {CASE: float(table[CASE].max())}}, found)


def latency_ratios(points: pd.DataFrame, capacity: float) -> pd.DataFrame:
    """One row per rate that both arms have: mean E2E latency (ms) of each, and how many times the other's it is."""
    wide = mean_rows(points, "e2e_mean").pivot_table(index="rate", columns="arm", values="e2e_mean").dropna()
    return pd.DataFrame(
        {
            "× what round_robin serves at most": wide.index / capacity,
            f"{BASE} (ms)": 1e3 * wide[BASE],
            f"{AWARE} (ms)": 1e3 * wide[AWARE],
            CASE: wide[BASE] / wide[AWARE],
        }
    ).reset_index(drop=True)
