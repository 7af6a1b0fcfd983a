"""Record one arm and predict the others from it: which of them is better, and how far the numbers are off."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
from typing_extensions import Unpack

from framework.contracts import Engine
from framework.engine.recorded import RecordedEngine
from framework.measure.metrics import METRIC_OF
from framework.report.finish import Findings, finish_sweep
from framework.report.rate_plots import rate_figures
from framework.study.arguments import Sweep
from framework.study.arms import Arm, check_named, parts_of, resolve_arms, with_cost_models
from framework.study.sweep import Study, run_study

SUFFIX = "-predicted"
COMPARED = ("output_throughput", "ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99", "e2e_mean")
ERRORS = "Predicted over executed, less 1 (%): means over the seeds"
RANKING = (
    "Which of two arms has less. Gap: the executed difference over the mean of both; spread: half the range over the "
    "seeds of that difference. Right: predicted as executed"
)


def run(*, record: str, **sweep: Unpack[Sweep]) -> None:
    """Replay every arm, then predict all but `record` from the steps of that one alone (engine=recorded)."""
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"clock": "virtual"})
    check_named("record", [record], arms)
    if len(arms) < 2:
        raise ValueError(f"arms has only {record!r}: prediction needs another to predict")
    executed = run_study(arms, sweep)
    executed.raise_failures()
    rates = sweep["rates"]
    if not isinstance(rates, list):
        rates = executed.table()["rate"].unique().tolist()
    predicted = {name + SUFFIX: predicted_arm(arm, executed, record) for name, arm in arms.items() if name != record}
    again: Sweep = {**sweep, "rates": rates, "fresh": False}
    study = run_study(arms | with_cost_models(predicted), again)
    finish_sweep(study, "prediction", partial(find, study, record, list(arms)))
    study.raise_failures()


def predicted_arm(arm: Arm, study: Study, record: str) -> Arm:
    if isinstance(arm.servers, dict):
        raise ValueError("engine=recorded repeats servers that are alike, and an arm has servers by name")
    make: Callable[..., Engine] = RecordedEngine
    return replace(arm, engine=partial(make, points=str(study.output_dir), arm=record))


def find(study: Study, record: str, arms: list[str], points: pd.DataFrame) -> Findings:
    """Errors of each predicted arm, and of each pair of arms which of them has less."""
    predicted = {name: name if name == record else name + SUFFIX for name in arms}
    ranked = ranking(points, predicted)
    tables = {ERRORS: errors(points, predicted, record), RANKING: ranked}
    return Findings(rate_figures(study, points), tables, [summary(ranked)])


def errors(points: pd.DataFrame, predicted: dict[str, str], record: str) -> pd.DataFrame:
    rows = []
    for rate, group in points.groupby("rate"):
        means = group.groupby("arm")[list(COMPARED)].mean()
        for arm, other in predicted.items():
            if arm != record and {arm, other} <= set(means.index):
                ratios = 100 * (means.loc[other] / means.loc[arm] - 1)
                rows.append([rate, arm, *ratios[list(COMPARED)]])
    return pd.DataFrame(rows, columns=["rate (req/s)", "arm", *map(title, COMPARED)])


def ranking(points: pd.DataFrame, predicted: dict[str, str]) -> pd.DataFrame:
    """Of each pair, rate and metric. The gap counts only where it exceeds the spread; one seed has none."""
    columns = ["rate (req/s)", "metric", "arms", "less", "less, predicted", "gap (%)", "spread (%)", "verdict"]
    rows = []
    for rate, group in points.groupby("rate"):
        for metric in COMPARED:
            by_arm = group.pivot_table(index="seed", columns="arm", values=[metric])[metric]
            for pair in combinations(predicted, 2):
                others = [predicted[arm] for arm in pair]
                if {*pair, *others} <= set(by_arm.columns):
                    executed, guessed = by_arm[list(pair)].dropna(), by_arm[others].dropna()
                    row = compare(pair, executed.to_numpy(), guessed.to_numpy())
                    rows.append([rate, title(metric), " / ".join(pair), *row])
    return pd.DataFrame(rows, columns=columns)


def compare(pair: tuple[str, str], executed: np.ndarray, guessed: np.ndarray) -> tuple[str, str, float, float, str]:
    """Who has less, executed and predicted; gap and spread (%); the verdict. Arrays are (seeds, 2)."""
    differences = executed[:, 0] - executed[:, 1]
    gap = 100 * abs(differences.mean()) / executed.mean()
    spread = 100 * float(np.ptp(differences)) / 2 / executed.mean() if len(differences) > 1 else np.nan
    less, less_guessed = (pair[int(values.mean(axis=0).argmin())] for values in (executed, guessed))
    right = less == less_guessed
    verdict = "right" if right else "wrong" if not gap <= spread else "within the spread"
    return less, less_guessed, float(gap), spread, verdict


def summary(ranked: pd.DataFrame) -> str:
    counts = ranked["verdict"].value_counts()
    clear = ranked[~(ranked["gap (%)"] <= ranked["spread (%)"])]
    num_right = int((clear["verdict"] == "right").sum())
    num_close = counts.get("within the spread", 0)
    within = f"; of the others {num_close} are wrong" if num_close else ""
    return f"predicted right: {num_right} of {len(clear)} rankings whose gap exceeds the spread{within}"


def title(metric: str) -> str:
    return METRIC_OF[metric].header(metric)
