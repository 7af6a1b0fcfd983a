"""Routers in front of several servers: latency, imbalance, and what caches and adapters' slots find, over rates."""

from functools import partial

import pandas as pd
from typing_extensions import Unpack

from experiments.cluster.figures import over_rates
from experiments.cluster.tables import LOADS, router_rows, router_table
from framework.build import MakeScheduler
from framework.measure.rates import first_too_much, offered_at
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.report.rate_plots import rate_figures
from framework.report.sweep_plots import cdf_figure
from framework.study.arguments import Sweep
from framework.study.arms import parts_of, resolve_arms
from framework.study.sweep import Study, run_study

ROUTERS = (
    "Over the offered rate, a curve per arm. Left: time to the first token, P50 and P99. Middle: imbalance of load "
    "(the most unfinished requests of a server over their mean) and of busy time. Right, where there are any: prompt "
    "tokens that a prefix cache had, or adapters brought to a server per request."
)
BY_ROUTER = "Every router at every rate; ÷ is over the first arm"
DEFINITIONS = {LOADS: "adapters that steps brought to the device / requests: 0 where each was there already"}


def run(*, scheduler: MakeScheduler, clock: Clock, **sweep: Unpack[Sweep]) -> None:
    """Replay the trace at every rate with every router; the first arm is the one that the others are compared with."""
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"scheduler": scheduler, "clock": clock})
    study = run_study(arms, sweep)
    finish_sweep(study, "cluster", partial(find, study))
    study.raise_failures()


def find(study: Study, points: pd.DataFrame) -> Findings:
    rows = router_rows(study, points)
    rate = first_too_much(rows)
    figures = rate_figures(study, points) | cdf_figure(study, points, rate)
    if len(set(rows["rate"])) > 1:
        figures = {"routers": (over_rates(rows), ROUTERS), **figures}
    return Findings(figures, {BY_ROUTER: router_table(rows)}, describe(rows, rate, points), DEFINITIONS)


def describe(rows: pd.DataFrame, rate: float, points: pd.DataFrame) -> list[str]:
    """The router with the least P99 of TTFT at `rate`, beside the first arm's."""
    at_rate = rows[rows["rate"] == rate]
    first, best = at_rate.iloc[0], at_rate.loc[at_rate["ttft_p99"].idxmin()]
    if first["arm"] == best["arm"]:
        return [f"at {offered_at(points, rate):.3g} requests/s no arm has a lower TTFT P99 than {first['arm']}"]
    factor = first["ttft_p99"] / best["ttft_p99"]
    return [
        f"at {offered_at(points, rate):.3g} requests/s {best['arm']} has the lowest TTFT P99, "
        f"{1e3 * best['ttft_p99']:.3g} ms; that of {first['arm']} is {factor:.2f}× as long"
    ]
