"""Latency over the rate by arm, and how many times another arm's rate each sustains: of vllm_latency and orca."""

from functools import partial

import pandas as pd
from typing_extensions import Unpack

from experiments.papers.comparison import read_paper, with_comparison
from experiments.papers.figures import latency_over_rate
from experiments.papers.sustained import (
    base_of,
    mean_rows,
    ratios,
    ratios_over_limits,
    sustained_rates,
    sustained_table,
)
from framework.checks import positive
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.study.arguments import Sweep
from framework.study.arms import parts_of, resolve_arms
from framework.study.auto_rates import Rates
from framework.study.sweep import run_study

OVER_RATE = "{} over the arrival rate, an arm a line. Dashed: the limit, {:g} times the lowest of all."
SUSTAINED = "The rate that each arm sustains"
OVER_LIMITS = "Ratios of sustained rates by the limit on latency"
DEFINITIONS = {
    "Sustained": "the rate at which the curve first passes the limit; between two rates, linear in the logarithm of "
    "the latency. – where it is above at the lowest rate already, or at none",
}


def run_latency(paper: str, metric: str, label: str, slowdown: float, clock: Clock, **sweep: Unpack[Sweep]) -> None:
    """Replay every arm at every rate, and compare what they sustain with what the paper `paper` reports.

    The limit is `slowdown` times the lowest `metric` of all points. `rates` are multiples of what an arm serves at
    most.
    """
    positive("slowdown", slowdown)
    rates = sweep["rates"]
    base_of(rates, pd.DataFrame({"rate": [1.0]}))
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"clock": clock})
    study = run_study(arms, sweep)
    finish_sweep(study, paper, partial(find, paper, metric, label, slowdown, rates))
    study.raise_failures()


def find(paper: str, metric: str, label: str, slowdown: float, rates: Rates, points: pd.DataFrame) -> Findings:
    rows = mean_rows(points, metric)
    limit = slowdown * rows[metric].min()
    base, capacity = base_of(rates, points)
    sustained = sustained_rates(rows, metric, limit)
    measured, cases = ratios(sustained), read_paper(paper)["quantities"]["sustained"]["values"]
    figure = latency_over_rate(rows, metric, f"{label} (ms)", limit, capacity, base)
    findings = Findings(
        {"latency": (figure, OVER_RATE.format(label.capitalize(), slowdown))},
        {
            SUSTAINED: sustained_table(sustained, limit, capacity, base),
            OVER_LIMITS: ratios_over_limits(rows, metric, [case for case in cases if case in measured]),
        },
        [f"{base} serves at most {capacity:.3g} requests/s: rates are multiples of that"],
        DEFINITIONS,
        {"latency.csv": rows},
    )
    return with_comparison(paper, {"sustained": measured}, findings)
