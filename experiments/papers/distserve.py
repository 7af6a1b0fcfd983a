"""Attainment over the rate per GPU, colocated and disaggregated: DistServe's Table 2 (OSDI 2024)."""

from functools import partial

import numpy as np
import pandas as pd
from typing_extensions import Unpack

from experiments.disaggregation.study import check_equal
from experiments.papers.comparison import read_paper, reported, with_comparison
from experiments.papers.figures import attainment_over_load
from framework.checks import positive
from framework.measure.slo import meets_limits, request_limits, target_of
from framework.report.finish import Findings, finish_sweep
from framework.study.arms import parts_of, resolve_arms
from framework.study.sweep import Study, Sweep, run_study

PAPER = "distserve"
ARMS = {"vLLM": "colocated", "DistServe": "disaggregated"}  # the paper's → ours
OVER_LOAD = (
    "Requests within the SLOs over the rate, in multiples of the highest that colocated servers keep, a curve per arm. "
    "Hollow: the paper's Table 2. Horizontal: the target."
)
BY_LIMIT = "Highest rate per GPU by the limit on TPOT, the other limits as they are"
COLUMNS = ["finish_time", "scheduled_time", "arrival_time", "ttft", "tpot", "e2e", "normalized_latency"]


def run(*, tpot_limits: list[float], **sweep: Unpack[Sweep]) -> None:
    """Replay both arms at every rate; `tpot_limits` (s) are looked at beside that of `slo`, which the paper's is."""
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"clock": "virtual"})
    if set(arms) != set(ARMS.values()):
        raise ValueError(f"papers/distserve compares the arms {' and '.join(ARMS.values())}, not {', '.join(arms)}")
    check_equal(arms)
    for limit in [*tpot_limits, request_limits(sweep["slo"]).get("tpot", 0.0)]:
        positive("the limit on TPOT", limit)
    study = run_study(arms, sweep)
    finish_sweep(study, PAPER, partial(find, study, tpot_limits))
    study.raise_failures()


def find(study: Study, tpot_limits: list[float], points: pd.DataFrame) -> Findings:
    limits, target = request_limits(study.slo), target_of(study.slo)
    curves = attained(study, points, limits)
    highest = {arm: highest_rate(rows, target) for arm, rows in curves.groupby("arm")}
    base = highest["colocated"]
    curves = curves.assign(load=curves["rate"] / base)
    rows = []
    for limit in sorted({*tpot_limits, limits["tpot"]}):
        other = attained(study, points, limits | {"tpot": limit})
        found = {arm: highest_rate(lines, target) for arm, lines in other.groupby("arm")}
        ratio = found["disaggregated"] / found["colocated"]
        rows.append({"TPOT ≤ (ms)": 1e3 * limit, **found, "disaggregated ÷ colocated": ratio})
    measured = {"rate": {paper: highest[arm] for paper, arm in ARMS.items()}, "attainment": at_loads(curves)}
    figure = attainment_over_load(curves, table_2(), ARMS, target)
    files = {"attainment.csv": curves}
    tables = {BY_LIMIT: pd.DataFrame(rows)}
    return with_comparison(PAPER, measured, Findings({"attainment": (figure, OVER_LOAD)}, tables, files=files))


def attained(study: Study, points: pd.DataFrame, limits: dict[str, float]) -> pd.DataFrame:
    """A row per arm and rate: the offered `rate` per GPU, and the share of all seeds' requests within `limits`."""
    rows = []
    for (arm, _), group in points.groupby(["arm", "rate"], sort=False):
        files = [study.folder(point) / "requests.parquet" for point in group["point"]]
        requests = pd.concat([pd.read_parquet(file, columns=COLUMNS) for file in files])
        rate = group["offered_rate"].mean() / study.arms[str(arm)].num_servers
        rows.append({"arm": arm, "rate": rate, "attainment": float(meets_limits(requests, limits).mean())})
    return pd.DataFrame(rows).sort_values(["arm", "rate"], ignore_index=True)


def highest_rate(rows: pd.DataFrame, target: float) -> float:
    """Where the line between rates first falls below the target; NaN if it never does, or is there from the start."""
    rates, shares = rows["rate"].to_numpy(), rows["attainment"].to_numpy()
    below = np.flatnonzero(shares < target)
    if not len(below) or below[0] == 0:
        return float("nan")
    first = below[0]
    return float(np.interp(-target, -shares[first - 1 : first + 1], rates[first - 1 : first + 1]))


def at_loads(curves: pd.DataFrame) -> dict[str, float]:
    """What is measured at the loads of the paper's cases, in percent; NaN outside of the rates there are."""
    found = {}
    for paper, load in cases():
        rows = curves[curves["arm"] == ARMS[paper]]
        share = np.interp(load, rows["load"], rows["attainment"], left=np.nan, right=np.nan)
        found[case_name(paper, load)] = 100 * float(share)
    return found


def cases() -> list[tuple[str, float]]:
    """(system, load) of the paper's values."""
    names = reported(read_paper(PAPER), "attainment")
    return [(system, float(load)) for system, _, load in (name.partition(" at ") for name in names)]


def case_name(system: str, load: float) -> str:
    return f"{system} at {load:.2f}"


def table_2() -> pd.DataFrame:
    """The paper's attainment (a share) by `arm`, ours, and `load`."""
    values = reported(read_paper(PAPER), "attainment")
    rows = [
        {"arm": ARMS[system], "load": load, "attainment": values[case_name(system, load)] / 100}
        for system, load in cases()
    ]
    return pd.DataFrame(rows)
