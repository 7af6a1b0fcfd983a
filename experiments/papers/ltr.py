"""Shortest job first by predicted lengths against first come: Tables 2 and 3 of Learning to rank (NeurIPS 2024)."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NotRequired

import numpy as np
import pandas as pd
from typing_extensions import TypedDict, Unpack

from experiments.papers.comparison import Values, with_comparison
from experiments.papers.figures import answers_over_time, bars_by_case
from experiments.papers.workloads import Cases, split_cases, united
from framework.config import check_keywords, with_keywords
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.study.arguments import Sweep
from framework.study.arms import Arm, check_named, parts_of, resolve_arms
from framework.study.auto_rates import Multiples
from framework.study.sweep import Study, run_study

PAPER = "ltr"
FIRST = 0.1  # of the answers: the source's 1,000 of 10,000
LATENCY, FIRST_OF, GUARD = "latency", ("sharegpt", "lmsys"), "guard"  # workloads that are compared
BY_ARM = "Mean latency per output token of a burst, by arm."
OVER_TIME = "Answers that have ended over time, all requests at once, an arm a line. Dotted: a tenth of them."
TABLE = "Latency per output token, the first tenth of the answers, and waits, by workload and arm"
DEFINITIONS = {
    "Latency": "mean over the requests of E2E / output tokens",
    "First tenth": "from the first arrival to the end of the first tenth of all answers",
    "Wait": "of a request: to its first token, or between two of its tokens, whichever is longest",
    "Arms": "oracle knows the outputs' lengths, ranking and classifier have predictions whose rank correlation with "
    "them (Kendall's τ) is set, ten_classes knows which tenth of the longest output a length is in",
}


class Workload(TypedDict):
    """The arms in `only` serve the sweep's trace with these keywords changed; at `rates`, or at the sweep's."""

    only: list[str]
    trace: dict[str, Any]
    rates: NotRequired[Multiples]


def run(*, workloads: dict[str, Workload], clock: Clock, **sweep: Unpack[Sweep]) -> None:
    """Replay every workload with its arms. `latency`, `sharegpt`, `lmsys` and `guard` are what the paper reports."""
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"clock": clock})
    cases: Cases = {}
    studies = []
    for name, workload in workloads.items():
        check_named(f"workloads.{name}.only", workload["only"], arms)
        made = {f"{arm}-{name}": serving(arms[arm], name, workload) for arm in workload["only"]}
        cases |= {f"{arm}-{name}": (arm, name) for arm in workload["only"]}
        again: Sweep = {**sweep, "rates": rates_of(name, workload, sweep)}
        studies.append(run_study(made, again))
    study = united(studies)
    finish_sweep(study, PAPER, partial(find, study, cases))
    study.raise_failures()


def serving(arm: Arm, name: str, workload: Workload) -> Arm:
    check_keywords(arm.trace.func, workload["trace"], f"workloads.{name}.trace")
    return replace(arm, trace=with_keywords(arm.trace, **workload["trace"]))


def rates_of(name: str, workload: Workload, sweep: Sweep) -> Any:
    """Multiples are of what one of the workload's arms serves."""
    rates = workload.get("rates")
    if rates is None:
        return sweep["rates"]
    check_named(f"workloads.{name}.rates.of", [rates["of"]], workload["only"])
    return {**rates, "of": f"{rates['of']}-{name}"}


def find(study: Study, cases: Cases, points: pd.DataFrame) -> Findings:
    rows, lines = [], []
    for point in points.to_dict("records"):
        requests = pd.read_parquet(study.folder(point["point"]) / "requests.parquet")
        rows.append({"arm": point["arm"], "seed": point["seed"], **numbers(requests)})
        if point["seed"] == points["seed"].min():
            ends = np.sort(requests["finish_time"].dropna().to_numpy()) - requests["arrival_time"].min()
            lines.append(pd.DataFrame({"arm": point["arm"], "time": ends}))
    every = split_cases(pd.DataFrame(rows), cases)
    means = every.groupby(["workload", "arm"], sort=False).mean(numeric_only=True).drop(columns="seed")
    over_time = split_cases(pd.concat(lines, ignore_index=True), cases)
    at_once = over_time[over_time["workload"].isin(FIRST_OF)]
    figures = {}
    if LATENCY in means.index:
        bars = means.loc[LATENCY, ["latency"]].T.set_axis(["burst"])
        figures["latency"] = (bars_by_case(bars, "", "latency (s/output token)"), BY_ARM)
    if len(at_once):
        figures["answers"] = (answers_over_time(at_once, FIRST), OVER_TIME)
    names = {
        "latency": "latency (s/token)",
        "first_tenth": "first tenth (s)",
        "longest_wait": "longest wait (s)",
        "mean_wait": "mean wait (s)",
    }
    tables = {TABLE: means.reset_index().rename(columns=names)}
    files = {"waits.csv": every}
    return with_comparison(PAPER, measured(means), Findings(figures, tables, [], DEFINITIONS, files))


def numbers(requests: pd.DataFrame) -> dict[str, float]:
    """What is compared of one replay (s)."""
    ends = np.sort(requests["finish_time"].dropna().to_numpy())
    gaps = [np.diff(times).max(initial=0.0) for times in requests["token_times"]]
    waits = np.maximum(requests["ttft"], gaps)
    return {
        "latency": float(requests["normalized_latency"].mean()),
        "first_tenth": float(ends[max(round(FIRST * len(requests)), 1) - 1] - requests["arrival_time"].min()),
        "longest_wait": float(waits.max()),
        "mean_wait": float(waits.mean()),
    }


def measured(means: pd.DataFrame) -> Values:
    """By quantity of the paper, of what was replayed; `means` has a row per workload and arm."""
    values: dict[str, Mapping[str, float]] = {}
    served = set(means.index.get_level_values("workload"))
    if LATENCY in served:
        values["latency"] = dict(means.loc[LATENCY, "latency"])
    for workload in served.intersection(FIRST_OF):
        values[f"first_{workload}"] = dict(means.loc[workload, "first_tenth"])
    if GUARD in served:
        longest = means.loc[GUARD, "longest_wait"]
        values["longest_wait"] = {f"{a} ÷ {b}": longest[a] / longest[b] for a in longest.index for b in longest.index}
    return values
