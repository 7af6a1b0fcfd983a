"""Virtual against wall clock: a trace replayed with measured steps and in real time must give the same numbers."""

from functools import partial

import pandas as pd
from typing_extensions import Unpack

from framework.build import MakeScheduler
from framework.report.finish import Findings, finish_sweep
from framework.report.sweep_plots import cdf_figure
from framework.study.arms import parts_of, resolve_arms
from framework.study.sweep import Study, Sweep, run_study

CAPTION = (
    "Virtual relative to wall clock (median over seeds); expected: throughput within 2%, median TTFT and TPOT within 5%"
)
COMPARED = ("output_throughput", "ttft_p50", "tpot_p50", "ttft_p99", "tpot_p99", "e2e_mean")


def run(*, scheduler: MakeScheduler, **sweep: Unpack[Sweep]) -> None:
    """Replay the trace under both clocks (`arms`) in turns and print by how much the numbers differ."""
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"scheduler": scheduler, "clock": "virtual"})
    study = run_study(arms, sweep)
    finish_sweep(study, "clock_fidelity", partial(find, study))
    study.raise_failures()


def find(study: Study, points: pd.DataFrame) -> Findings:
    return Findings(cdf_figure(study, points, points["rate"].max()), {CAPTION: differences(points)})


def differences(points: pd.DataFrame) -> pd.DataFrame:
    """Per rate, the virtual clock's numbers relative to the wall clock's, as medians over the seeds both have."""
    rows = []
    for _, group in points.groupby("rate"):
        by_seed = group.pivot_table(index="seed", columns="arm", values=list(COMPARED))
        if {"virtual", "wall"} <= set(group["arm"]):
            ratios = {
                metric: (by_seed[metric]["virtual"] / by_seed[metric]["wall"]).median() - 1 for metric in COMPARED
            }
            rows.append(
                {"rate (req/s)": group["offered_rate"].mean()}
                | {metric: f"{ratio:+.1%}" for metric, ratio in ratios.items()}
            )
    return pd.DataFrame(rows, columns=["rate (req/s)", *COMPARED])
