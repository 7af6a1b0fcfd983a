"""Throughput within nine SLOs, prompts and decodes on servers of their own or not: Splitwise (ISCA 2024)."""

from functools import partial

import pandas as pd
from typing_extensions import Unpack

from experiments.disaggregation.study import check_equal
from experiments.papers.capacities import find_capacities
from experiments.papers.comparison import with_comparison
from experiments.papers.figures import slowdowns_over_rate
from experiments.papers.slowdown import (
    Alone,
    Limits,
    check_limits,
    goals_of_slowdowns,
    read_slowdowns,
    replay_alone,
    slowdown_rows,
)
from experiments.papers.sustained import base_of
from framework.build import MakeScheduler
from framework.checks import positive
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.study.arguments import Sweep
from framework.study.arms import Arm, parts_of, resolve_arms
from framework.study.auto_rates import Rates
from framework.study.sweep import Study, run_study

PAPER, SPLIT = "splitwise", "split"
OVER_RATE = (
    "Slowdown over the arrival rate, a curve per arm: P50, P90 and P99 of TTFT, TPOT and E2E, each over the same "
    "request's alone. Dashed: the limits."
)
BY_SCALE = "Throughput within all limits, by how much of a slowdown they allow"
DEFINITIONS = {
    "Slowdown": "a request's latency over that of the same request in a replay in which none meets another, on one "
    "server of the first arm",
    "Limits ×": "of what each limit allows beyond 1, so many times as much: the P50 of TPOT may be 1.25 times as long "
    "as alone at 1, and 1.5 times at 2",
    "Throughput": "the highest offered rate at which all limits hold and waiting does not grow: where a logistic curve "
    "through the shares of all replays crosses the target (docs/method.md), with a 95% interval over seeds. What is in "
    "doubt says why",
}


def run(
    *,
    limits: Limits,
    scales: list[float],
    compared_at: float,
    scheduler: MakeScheduler,
    clock: Clock,
    **sweep: Unpack[Sweep],
) -> None:
    """Replay every arm at every rate, and find what each can serve within all of `limits`.

    `limits` are multiples of what a request takes alone, and `scales` how much of their excess over 1 is allowed: the
    paper's throughputs, at 1, are compared with those at `compared_at`. The first arm's servers do both; among the
    others are those that are split. `rates` are multiples of what an arm serves at most; every rate needs two seeds at
    least.
    """
    check_limits(limits)
    for scale in scales:
        positive("scales", scale)
    if compared_at not in scales or len(sweep["seeds"]) < 2:
        raise ValueError(
            f"compared_at={compared_at}, scales={scales} and seeds={sweep['seeds']}: give two seeds at least, and a "
            "scale that is one of them"
        )
    base_of(sweep["rates"], pd.DataFrame({"rate": [1.0]}))
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"scheduler": scheduler, "clock": clock})
    check_equal(arms)
    first, *others = arms
    if is_split(arms[first]) or not any(is_split(arms[name]) for name in others):
        raise ValueError("papers/splitwise compares servers that do both, the first arm, with arms that are split")
    alone = replay_alone("alone", arms[first], sweep)
    study = run_study(arms, sweep)
    finish_sweep(study, PAPER, partial(find, study, alone, limits, scales, compared_at, sweep["rates"]))
    study.raise_failures()


def is_split(arm: Arm) -> bool:
    return any(group.role == "prefill" for group in arm.groups)


def find(
    study: Study,
    alone: Alone,
    limits: Limits,
    scales: list[float],
    compared_at: float,
    rates: Rates,
    points: pd.DataFrame,
) -> Findings:
    base, served = base_of(rates, points)
    goals = {scale: goals_of_slowdowns(limits, scale) for scale in sorted(scales)}
    rows = find_capacities(study, points, goals, partial(read_slowdowns, study, alone))
    slowdowns = slowdown_rows(study, alone, points)
    first, *_ = study.arms
    figure = slowdowns_over_rate(slowdowns, limits)
    findings = Findings(
        {"slowdowns": (figure, OVER_RATE)},
        {BY_SCALE: table_of(rows, first)},
        [f"{base} serves at most {served:.3g} requests/s: rates are multiples of that"],
        DEFINITIONS,
        {"throughputs.csv": rows, "slowdowns.csv": slowdowns},
    )
    return with_comparison(PAPER, {"throughput": {f"{SPLIT} ÷ {first}": gains(study, rows)[compared_at]}}, findings)


def gains(study: Study, rows: pd.DataFrame) -> dict[float, float]:
    """By scale: the most that an arm serves which is split, over what the first serves; NaN where one is not known."""
    first, *_ = study.arms
    split = [name for name, arm in study.arms.items() if is_split(arm)]
    by_scale = rows.pivot_table(index="limit", columns="arm", values="capacity", dropna=False)
    ratio = by_scale.reindex(columns=split).max(axis=1) / by_scale.reindex(columns=[first])[first]
    return {float(scale): float(value) for scale, value in ratio.items()}


def table_of(rows: pd.DataFrame, first: str) -> pd.DataFrame:
    """Of what `find_capacities` makes, also over what the `first` arm serves at the same scale."""
    base = rows[rows["arm"] == first].set_index("limit")["capacity"]
    return pd.DataFrame(
        {
            "limits ×": rows["limit"],
            "arm": rows["arm"],
            "throughput (req/s)": rows["capacity"],
            "throughput (req/s)_low": rows["low"],
            "throughput (req/s)_high": rows["high"],
            f"÷ {first}": rows["capacity"] / rows["limit"].map(base),
            "binds": rows["binds"],
            "doubt": rows["doubt"],
        }
    ).sort_values("limits ×", kind="stable", ignore_index=True)
