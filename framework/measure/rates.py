"""Points over arrival rates: means over seeds, saturation, and the highest rate within the SLOs.

Points belong together by the `rate` that was asked for; what is said of them is of the `offered_rate`.
"""

import pandas as pd

from framework.measure.intervals import estimate
from framework.measure.metric import SHARE
from framework.measure.metrics import METRIC_OF, metric_names
from framework.measure.slo import TARGET_ATTAINMENT

MIN_REQUESTS = 48  # with fewer, chance alone saturates 1% and more of the replays on a half-loaded server of one seat
MAX_GROWTH = 0.1  # seconds of waiting per second of arrivals: a rate a tenth above what a server can do


def is_saturated(rates: pd.DataFrame) -> "pd.Series[bool]":
    """Whether waiting grows, for rows of `over_rates`; NA of fewer than MIN_REQUESTS served unless all came at once."""
    grows = (rates["waiting_growth"] > MAX_GROWTH).astype("boolean")
    return grows.where((rates["num_completed"] >= MIN_REQUESTS) | (rates["waiting_growth"] == float("inf")))


def saturation(points: pd.DataFrame) -> dict[str, float]:
    """Per arm, the most it served (requests/s) at a rate that was too much for it; NaN where no rate was."""
    rates = over_rates(points)
    served = rates[is_saturated(rates)].groupby("arm")["sustained_throughput"].max()
    return {str(arm): float(served.get(arm, float("nan"))) for arm in points["arm"].unique()}


def highest_within(points: pd.DataFrame, target: float = TARGET_ATTAINMENT) -> dict[str, float]:
    """Per arm, the highest rate here (1/s, offered) whose mean attainment over seeds is at least `target`; NaN if none.

    A rate that saturates the arm does not count: there the attainment falls with the length of the trace. Nor does one
    without a verdict.
    """
    rates = over_rates(points)
    met = rates[~is_saturated(rates) & (rates["slo_attainment"] >= target)].groupby("arm")["offered_rate"].max()
    return {str(arm): float(met.get(arm, float("nan"))) for arm in points["arm"].unique()}


def over_rates(points: pd.DataFrame) -> pd.DataFrame:
    """One row per (arm, rate), with what tells attainment and saturation: means over seeds, and the fewest requests."""
    means = dict.fromkeys(("offered_rate", "slo_attainment", "waiting_growth", "sustained_throughput"), "mean")
    return points.groupby(["arm", "rate"], sort=False, as_index=False).agg(means | {"num_completed": "min"})


def offered_at(points: pd.DataFrame, rate: float) -> float:
    """What was offered (1/s) where `rate` was asked for: the mean over arms and seeds."""
    return float(points.loc[points["rate"] == rate, "offered_rate"].mean())


def aggregate(points: pd.DataFrame) -> pd.DataFrame:
    """One row per (arm, rate): the mean over seeds, with `…_low` and `…_high` for every metric, as `estimate` has them.

    A single seed keeps its bootstrap interval, and has none for throughput.
    """
    rows = []
    for (arm, rate), group in points.groupby(["arm", "rate"], sort=False):
        assert not group["seed"].duplicated().any(), "a seed counted twice"
        row: dict[str, object] = {"arm": arm, "rate": rate, "num_seeds": len(group)}
        for name in metric_names():
            for column in (name, f"steady_{name}"):
                row |= with_interval(group, column, is_share=METRIC_OF[name].unit is SHARE)
        users = {"users": group["users"].iloc[0]} if "users" in group else {}
        rows.append(row | {"offered_rate": group["offered_rate"].mean(), **users})
    summary = pd.DataFrame(rows)
    return summary.assign(is_saturated=is_saturated(over_rates(points))) if rows else summary


def first_too_much(summary: pd.DataFrame) -> float:
    """Of what `aggregate` made: the lowest rate at which some arm is saturated, or else the highest there is."""
    too_much = summary["rate"][summary["is_saturated"]]
    return float(too_much.min() if len(too_much) else summary["rate"].max())


def with_interval(group: pd.DataFrame, name: str, is_share: bool) -> dict[str, float]:
    """A metric's mean over the seeds of one arm and rate, and its interval."""
    defined = group[group[name].notna()]
    mean, low, high = estimate(defined[name].to_numpy(dtype=float), is_share=is_share)
    if f"{name}_low" in group and len(defined) == 1:
        low, high = defined[[f"{name}_low", f"{name}_high"]].iloc[0]
    return {name: mean, f"{name}_low": float(low), f"{name}_high": float(high)}
