"""Whole prompts beside decodes, chunks in steps of their own, and both: Table 4 of Sarathi-Serve (OSDI 2024)."""

from functools import partial

import pandas as pd
from typing_extensions import Unpack

from experiments.chunked_prefill.figures import beside_reported, over_rates
from experiments.papers.comparison import Paper, read_paper, reported, with_comparison
from experiments.papers.own_rates import Workload, run_workloads, with_multiples
from experiments.papers.workloads import Cases, split_cases
from framework.measure.rates import aggregate
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.report.plots import Drawn
from framework.study.arguments import Sweep
from framework.study.arms import parts_of
from framework.study.auto_rates import Multiples

PAPER = "sarathi_ablation"
METRICS = {"ttft_p50": "TTFT P50", "itl_p99": "ITL P99"}
BESIDE = "Latencies over those of {}, and in seconds, with {}'s lengths at its load. Dotted: as reported."
OVER_RATES = "TTFT, P99 of the gaps between tokens, and output throughput over the offered rate, {}'s lengths."
BY_LOAD = "Latencies over those of {}, by the load"
DEFINITIONS = {
    "Load": "the arrival rate as a multiple of what the arm named with it serves at most of that workload, when all "
    "requests are there at once"
}


def run(*, workloads: dict[str, Workload], clock: Clock, **sweep: Unpack[Sweep]) -> None:
    """Replay every arm with every workload, each at the same multiples of what one arm serves at most of it.

    Compared with the paper is what each workload has at its `compared_at`, one of these multiples.
    """
    study, cases, rates = run_workloads(workloads, parts_of(sweep) | {"clock": clock}, sweep)
    finish_sweep(study, PAPER, partial(find, cases, workloads, rates))
    study.raise_failures()


def find(cases: Cases, workloads: dict[str, Workload], rates: Multiples, points: pd.DataFrame) -> Findings:
    """Ratios are to the arm that the rates are multiples of."""
    base, paper = rates["of"], read_paper(PAPER)
    rows = with_multiples(split_cases(aggregate(points), cases), rates)
    at_load = pd.concat(
        [of[of["multiple"] == workloads[str(name)]["compared_at"]] for name, of in rows.groupby("workload", sort=False)]
    )
    measured = {
        f"{metric}_{name}": dict(zip(of["arm"], of[metric], strict=True))
        for name, of in at_load.groupby("workload", sort=False)
        for metric in METRICS
    }
    measured = {name: values for name, values in measured.items() if name in paper["quantities"]}
    figures: dict[str, Drawn] = {}
    for name, of in rows.groupby("workload", sort=False):
        latencies = beside({key: own for key, own in measured.items() if key.endswith(f"_{name}")}, paper, base)
        if not latencies.empty:
            figures[f"reported_{name}"] = (beside_reported(latencies, base), BESIDE.format(base, name))
        if len(set(of["multiple"])) > 1:
            figures[f"over_rates_{name}"] = (over_rates(of), OVER_RATES.format(name))
    tables = {BY_LOAD.format(base): by_load(rows, base)}
    files = {"ablation.csv": rows[["arm", "workload", "multiple", "offered_rate", *METRICS, "output_throughput"]]}
    return with_comparison(PAPER, measured, Findings(figures, tables, definitions=DEFINITIONS, files=files))


def beside(measured: dict[str, dict[str, float]], paper: Paper, base: str) -> pd.DataFrame:
    """A row per quantity and arm that both have: latencies (s), and each over that of the arm `base`."""
    rows = []
    for name, values in measured.items():
        theirs = reported(paper, name)
        for arm in theirs:
            rows.append(
                {
                    "metric": paper["quantities"][name]["name"],
                    "arm": arm,
                    "reported": theirs[arm],
                    "measured": values.get(arm, float("nan")),
                    f"reported ÷ {base}": theirs[arm] / theirs[base],
                    f"measured ÷ {base}": values.get(arm, float("nan")) / values.get(base, float("nan")),
                }
            )
    return pd.DataFrame(rows)


def by_load(rows: pd.DataFrame, base: str) -> pd.DataFrame:
    """A row per workload and load: every other arm's latencies over those of `base`, whose own are in milliseconds."""
    table = []
    for (workload, multiple), of in rows.groupby(["workload", "multiple"], sort=False):
        by_arm = of.set_index("arm")
        row: dict[str, object] = {
            "workload": workload,
            f"load (× what {base} serves at most)": multiple,
            "rate (req/s)": float(of["offered_rate"].mean()),
        }
        for metric, label in METRICS.items():
            own = by_arm[metric].get(base, float("nan"))
            row[f"{label}, {base} (ms)"] = 1e3 * own
            row |= {f"{label}, {arm} ÷": by_arm.loc[arm, metric] / own for arm in by_arm.index if arm != base}
        table.append(row)
    return pd.DataFrame(table)
