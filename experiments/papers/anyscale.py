"""Static, continuous and paged batching by how unequal outputs are: Anyscale's study (2023)."""

from functools import partial

import pandas as pd
from typing_extensions import Unpack

from experiments.papers.comparison import with_comparison
from experiments.papers.figures import bars_by_case
from experiments.papers.workloads import Cases, Workloads, over_workloads, split_cases
from framework.measure.rates import aggregate
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.study.arguments import Sweep
from framework.study.arms import parts_of, resolve_arms
from framework.study.sweep import run_study

PAPER = "anyscale"
OVER_CAPS = "Prompt and output tokens per second by arm, over the cap on the outputs, all requests at once."
BY_CAP = "Throughput by the cap on the outputs"


def run(*, workloads: Workloads, clock: Clock, **sweep: Unpack[Sweep]) -> None:
    """Replay every arm with every workload, all requests at once; ratios are to the first arm, at the last workload."""
    arms, cases = over_workloads(resolve_arms(sweep["arms"], parts_of(sweep) | {"clock": clock}), workloads)
    study = run_study(arms, sweep)
    finish_sweep(study, PAPER, partial(find, cases))
    study.raise_failures()


def find(cases: Cases, points: pd.DataFrame) -> Findings:
    rows = split_cases(aggregate(points)[["arm", "total_throughput", "mean_batch_size"]], cases)
    by_arm = rows.pivot_table(index="workload", columns="arm", values="total_throughput", sort=False)
    first = by_arm.columns[0]
    ratios = {f"{arm} ÷ {first}": by_arm[arm] / by_arm[first] for arm in by_arm.columns[1:]}
    table = by_arm.rename(columns="{} (tok/s)".format).assign(**ratios).rename_axis("outputs").reset_index()
    figure = bars_by_case(by_arm, "outputs, as the study names them", "throughput (tokens/s)")
    findings = Findings({"throughput": (figure, OVER_CAPS)}, {BY_CAP: table}, files={"throughput.csv": rows})
    over_static = by_arm.iloc[-1] / by_arm.iloc[-1][first]
    return with_comparison(PAPER, {"throughput": dict(over_static)}, findings)
