"""How far one side is from another on the same requests, beside how far repeats of the other are from each other.

Errors are relative and signed: the side / the mean of the reference's repeats - 1. Those of shares are in points.
"""

from dataclasses import dataclass
from math import isnan, nan

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from framework.measure.intervals import CONFIDENCE, STATISTICS, Values
from framework.measure.metric import SHARE
from framework.measure.metrics import METRIC_OF

LATENCIES = ("ttft", "tpot", "itl", "e2e")
PER_REQUEST = ("ttft", "tpot", "e2e")
COLUMNS = ("output_throughput", *(f"{name}_{end}" for name in LATENCIES for end in STATISTICS), "slo_attainment")
MODERATE = 0.85  # of the capacity: up to it the first goals hold
SATURATED = 0.95  # from here on waits are a property of the arrivals more than of the engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """Errors that are to be reached, in %, of the attainment in points; NaN: none."""

    throughput: float
    p50: float
    p99: float
    attainment: float
    p90: float = nan

    def of(self, column: str) -> float:
        """NaN where there is none."""
        if column == "slo_attainment":
            return self.attainment
        if column == "output_throughput":
            return self.throughput
        return {"p50": self.p50, "p90": self.p90, "p99": self.p99}.get(column.rpartition("_")[2], nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllGoals:
    """Of loads up to 85% of the capacity; of those above and where sequences are preempted; of shifts of the rate."""

    moderate: Goals
    saturated: Goals
    shift: float


def half_width(values: Values) -> float:
    """Of the 95% interval (Student's t) of the mean; NaN of fewer than two values."""
    if len(values) < 2:
        return nan
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(student_t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error


def errors(points: pd.DataFrame, reference: str, goals: AllGoals) -> pd.DataFrame:
    """One row per cell, load, other side and metric, in percent or points.

    `points` have `cell`, `side`, `load`, `rate` and the metrics, a row per repeat. `spread` is half of the 95% interval
    of the mean of the reference's repeats, and of the other side's if it has repeats too. `shift` (%) of the offered
    rate explains the error, from 95% of the capacity on. `is_met`: the error is within the goal or the spread; NA
    without a goal.
    """
    rows = []
    for (cell, load), group in points.groupby(["cell", "load"], sort=False):
        repeats = group[group["side"] == reference]
        if repeats.empty:
            continue
        is_moderate = load <= MODERATE and not repeats["num_preemptions"].any()
        limits = goals.moderate if is_moderate else goals.saturated
        curve = points[(points["cell"] == cell) & (points["side"] == reference)].groupby("rate")[list(COLUMNS)].mean()
        for side, others in group[group["side"] != reference].groupby("side", sort=False):
            key = {"cell": cell, "load": load, "rate": group["rate"].iloc[0], "side": side}
            for column in COLUMNS:
                row = error_of(column, repeats[column].to_numpy(float), others[column].to_numpy(float))
                goal = limits.of(column)
                row["shift"] = nan if load < SATURATED else 100 * shift(curve[column], key["rate"], row["value"])
                rows.append(key | {"metric": column} | row | {"goal": goal, "is_met": is_met(row, goal)})
    return pd.DataFrame(rows).astype({"is_met": "boolean"}) if rows else pd.DataFrame(rows)


def error_of(column: str, repeats: Values, values: Values) -> dict[str, float]:
    """The means of both, the error and the spread."""
    return relative_error(repeats, values, is_share=METRIC_OF[column].unit is SHARE)


def relative_error(repeats: Values, values: Values, is_share: bool = False) -> dict[str, float]:
    """Of the mean of `values`, in percent of that of the reference's `repeats`, in points where they are shares.

    The spread is half of the 95% interval of the error.
    """
    mean, value = float(repeats.mean()), float(values.mean())
    scale = 100.0 if is_share else 100.0 / mean if mean else nan
    widths = [half_width(one) for one in (repeats, values)]
    spread = scale * float(np.hypot(widths[0], 0.0 if isnan(widths[1]) else widths[1]))
    return {"reference": mean, "value": value, "error": scale * (value - mean), "spread": spread}


def is_met(row: dict[str, float], goal: float) -> bool | None:
    if isnan(goal) or isnan(row["error"]):
        return None
    return abs(row["error"]) <= max(goal, 0.0 if isnan(row["spread"]) else row["spread"])


def shift(curve: "pd.Series[float]", rate: float, value: float) -> float:
    """By which share another offered rate would give the reference this value: from the curve's neighbouring rates.

    `curve` is the reference's metric by rate. It is taken as straight between neighbours, and beyond the last one. NaN
    where nothing is known of a slope, or it is none.
    """
    rates, values = curve.index.to_numpy(float), curve.to_numpy(float)
    here = int(np.searchsorted(rates, rate))
    neighbours = [index for index in (here - 1, here + 1) if 0 <= index < len(rates)]
    found = []
    for index in neighbours:
        slope = (values[index] - values[here]) / (rates[index] - rates[here])
        if slope and np.isfinite(slope):
            found.append(((value - values[here]) / slope / rate, np.sign(index - here)))
    inside = [moved for moved, direction in found if moved * direction >= 0]
    return float(min(inside or [moved for moved, _ in found] or [nan], key=abs))


def per_request(repeats: list[pd.DataFrame], others: list[pd.DataFrame], names: tuple[str, str]) -> dict[str, float]:
    """Of each latency: the mean absolute error (%), Pearson's r and the bias of the sum (%), over the requests.

    The tables are `requests.parquet` of both sides; repeats are averaged per request. Raises ValueError, with both
    `names`, where they are not of the same requests.
    """
    mine, theirs = (mean_latencies(tables) for tables in (repeats, others))
    check_same_requests(repeats[0], others[0], names)
    found = {}
    for name in PER_REQUEST:
        both = pd.DataFrame({"reference": mine[name], "value": theirs[name]}).dropna()
        ratios = both["value"] / both["reference"] - 1
        varies = len(both) > 1 and both.nunique().min() > 1
        found[f"{name}_mape"] = 100 * float(ratios.abs().mean())
        found[f"{name}_r"] = float(both["reference"].corr(both["value"])) if varies else nan
        found[f"{name}_bias"] = 100 * float(both["value"].sum() / both["reference"].sum() - 1) if len(both) else nan
    return found


def mean_latencies(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Per request (the index), over the repeats."""
    return pd.concat([table.set_index("request_id")[list(PER_REQUEST)] for table in tables]).groupby(level=0).mean()


def check_same_requests(one: pd.DataFrame, other: pd.DataFrame, names: tuple[str, str]) -> None:
    """ValueError, naming both, unless they have the same requests; when a turn arrives is up to the one before."""
    both = [table.sort_values("request_id").reset_index(drop=True) for table in (one, other)]
    first, second = (table[["request_id", "num_prompt_tokens"]] for table in both)
    times = [table["arrival_time"].where(table["think_time"].isna()) for table in both]
    if not (first.equals(second) and times[0].equals(times[1])):
        raise ValueError(f"{names[0]} and {names[1]} replayed different traces: {len(one)} and {len(other)} requests")
