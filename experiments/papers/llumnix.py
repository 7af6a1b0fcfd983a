"""Running sequences that move to where there is room, against dispatch alone: tails of Llumnix (OSDI 2024)."""

from functools import partial

import numpy as np
import pandas as pd
from typing_extensions import Unpack

from experiments.papers.comparison import with_comparison
from experiments.papers.figures import metrics_over_rate
from experiments.papers.sustained import base_of
from framework.build import MakeScheduler
from framework.measure.rates import aggregate
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.study.arguments import Sweep
from framework.study.arms import parts_of, resolve_arms
from framework.study.auto_rates import Rates
from framework.study.sweep import Study, run_study

PAPER = "llumnix"
ROUND_ROBIN, LOAD_AWARE, MIGRATING = ARMS = ("round_robin", "infaas", "llumnix")
LATENCIES = ("ttft_mean", "ttft_p99", "tpot_p99", "e2e_mean", "e2e_p99")
COLUMNS = ["token_times", "num_preemptions", "num_moves", "transfer_wait", "transfer_time"]
OVER_RATE = (
    "P99 of the time to the first token and of the whole request, and what a request loses by preemptions, over the "
    "arrival rate; a curve per arm."
)
BY_RATE = "Tails, preemptions and moves by rate"
DEFINITIONS = {
    "Preemption loss": "of a request, its longest gaps between tokens, as many as it was preempted, less as many times "
    "its median gap: waiting, and computing its tokens again; mean over all requests. A preemption before the first "
    "token is in the TTFT",
    "Downtime": "for how long a request that moves stands still: all of its copy, and waiting for the link",
}


def run(*, scheduler: MakeScheduler, clock: Clock, **sweep: Unpack[Sweep]) -> None:
    """Replay every arm at every rate, multiples of what one serves at most; `round_robin`, `infaas` and `llumnix` are
    compared as in the paper.
    """
    rates = sweep["rates"]
    base_of(rates, pd.DataFrame({"rate": [1.0]}))
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"scheduler": scheduler, "clock": clock})
    missing = [name for name in ARMS if name not in arms]
    if missing:
        raise ValueError(f"papers/llumnix compares the arms {', '.join(ARMS)}, and there is no {', '.join(missing)}")
    study = run_study(arms, sweep)
    finish_sweep(study, PAPER, partial(find, study, rates))
    study.raise_failures()


def find(study: Study, rates: Rates, points: pd.DataFrame) -> Findings:
    base, served = base_of(rates, points)
    rows = tail_rows(study, points)
    labels = {"ttft_p99": "TTFT P99 (s)", "e2e_p99": "E2E P99 (s)", "loss": "preemption loss (s per request)"}
    findings = Findings(
        {"tails": (metrics_over_rate(rows, labels, served, base), OVER_RATE)},
        {BY_RATE: table_of(rows, served, base)},
        [f"{base} serves at most {served:.3g} requests/s: rates are multiples of that"],
        DEFINITIONS,
        {"tails.csv": rows},
    )
    return with_comparison(PAPER, measured(rows), findings)


def tail_rows(study: Study, points: pd.DataFrame) -> pd.DataFrame:
    """A row per arm and rate, means over seeds: `offered_rate`, latencies (s), and what preemptions and moves cost.

    `loss` is in s per request, `preempted` a share, `moves` per request, `downtime` the median of all moves (s).
    """
    costs = []
    for row in points.to_dict("records"):
        requests = pd.read_parquet(study.folder(row["point"]) / "requests.parquet", columns=COLUMNS)
        stops = (requests["transfer_wait"] + requests["transfer_time"]) / requests["num_moves"]
        costs.append(
            {
                "loss": float(np.mean(preemption_losses(requests))),
                "preempted": float((requests["num_preemptions"] > 0).mean()),
                "moves": float(requests["num_moves"].mean()),
                "downtime": float(stops[requests["num_moves"] > 0].median()),
            }
        )
    of_points = points[["arm", "rate"]].reset_index(drop=True).join(pd.DataFrame(costs))
    means = of_points.groupby(["arm", "rate"], sort=False, as_index=False).mean()
    return aggregate(points)[["arm", "rate", "offered_rate", *LATENCIES]].merge(means, on=["arm", "rate"])


def preemption_losses(requests: pd.DataFrame) -> list[float]:
    """In seconds, of each request with `token_times` and `num_preemptions`: see the definitions."""
    losses = []
    for times, number in zip(requests["token_times"], requests["num_preemptions"], strict=True):
        gaps = np.sort(np.diff(times))
        longest = gaps[len(gaps) - min(number, len(gaps)) :]
        losses.append(float(longest.sum() - len(longest) * np.median(gaps)) if len(longest) else 0.0)
    return losses


def measured(rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    """What the paper's quantities are here: the largest ratios over the rates, but for preemptions their mean."""
    wide = {name: rows.pivot_table(index="rate", columns="arm", values=name) for name in (*LATENCIES, "loss")}

    def most(metric: str, arm: str) -> float:
        return float((wide[metric][arm] / wide[metric][MIGRATING]).max())

    lost = wide["loss"]
    had_any = lost[LOAD_AWARE] > 0
    against = f"{LOAD_AWARE} ÷ {MIGRATING}"
    return {
        "prefill": {
            f"P99, {against}": most("ttft_p99", LOAD_AWARE),
            f"mean, {against}": most("ttft_mean", LOAD_AWARE),
            f"mean, {ROUND_ROBIN} ÷ {MIGRATING}": most("ttft_mean", ROUND_ROBIN),
        },
        "decode": {f"P99, {against}": most("tpot_p99", LOAD_AWARE)},
        "e2e": {f"P99, {against}": most("e2e_p99", LOAD_AWARE), f"mean, {against}": most("e2e_mean", LOAD_AWARE)},
        "loss": {f"{MIGRATING} ÷ {LOAD_AWARE}": float((lost[MIGRATING] / lost[LOAD_AWARE])[had_any].mean())},
        "downtime": {MIGRATING: 1e3 * float(rows.loc[rows["arm"] == MIGRATING, "downtime"].median())},
    }


def table_of(rows: pd.DataFrame, served: float, base: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "arm": rows["arm"],
            f"× what {base} serves at most": rows["rate"] / served,
            "TTFT mean (s)": rows["ttft_mean"],
            "TTFT P99 (s)": rows["ttft_p99"],
            "TPOT P99 (ms)": 1e3 * rows["tpot_p99"],
            "E2E mean (s)": rows["e2e_mean"],
            "E2E P99 (s)": rows["e2e_p99"],
            "preempted (%)": 100 * rows["preempted"],
            "preemption loss (s)": rows["loss"],
            "moves per request": rows["moves"],
            "downtime (ms)": 1e3 * rows["downtime"],
        }
    )
