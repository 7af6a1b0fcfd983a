"""SLOs (service-level objectives): limits on latencies, per request or on a percentile, and which requests keep them.

`slo` maps keys to numbers: `ttft: 0.5` is a limit (s) for every request, of which a share of `attainment` has to keep
all such limits, 0.9 unless given. `ttft_p99: 2` is a limit (s) on a percentile of a replay.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

REQUEST_METRICS = ("ttft", "tpot", "e2e", "normalized_latency", "scheduling_delay")  # a request has one of each
GAPS = "itl"  # a request has many
ATTAINMENT = "attainment"
TARGET_ATTAINMENT = 0.9  # as in DistServe (OSDI 2024)
PERCENTILE = re.compile(r"(\w+)_p(\d{1,2}(?:\.\d+)?)")


@dataclass(frozen=True)
class Goal:
    """At least `share` of the requests, or of the gaps between tokens, are within all `limits` (metric → s)."""

    label: str
    limits: tuple[tuple[str, float], ...]
    share: float


def check_slo(slo: Mapping[str, float]) -> None:
    """ValueError naming a key that is no limit, or a value out of range."""
    for key, limit in slo.items():
        if key == ATTAINMENT:
            if limit is None or not 0 < limit < 1:
                raise ValueError(f"slo.attainment must be a share between 0 and 1, not {limit}")
            continue
        metric, share = parse(key)
        if metric not in REQUEST_METRICS and (metric != GAPS or share is None):
            allowed = f"{', '.join(REQUEST_METRICS)}, their percentiles and those of {GAPS}, as in ttft_p99, attainment"
            raise ValueError(f"unknown SLO metric {key!r}; allowed: {allowed}")
        if share is not None and not 0 < share < 1:
            raise ValueError(f"slo.{key}: a percentile is above 0 and below 100")
        if limit is None or not limit > 0:
            raise ValueError(f"the SLO for {key} must be a positive number of seconds, not {limit}")
    if ATTAINMENT in slo and not request_limits(slo):
        raise ValueError(f"slo.attainment={slo[ATTAINMENT]} is of limits that requests keep, and slo has none")


def parse(key: str) -> tuple[str, float | None]:
    """A key's metric, and the share of a percentile: `ttft_p99` is ("ttft", 0.99)."""
    found = PERCENTILE.fullmatch(key)
    return (key, None) if found is None else (found[1], float(found[2]) / 100)


def request_limits(slo: Mapping[str, float]) -> dict[str, float]:
    """Metric → limit (s), of those that each request has to keep."""
    return {key: limit for key, limit in slo.items() if key in REQUEST_METRICS}


def target_of(slo: Mapping[str, float]) -> float:
    return slo.get(ATTAINMENT, TARGET_ATTAINMENT)


def goals_of(slo: Mapping[str, float]) -> tuple[Goal, ...]:
    """What has to hold at a rate for it to be within capacity."""
    goals = []
    limits, target = request_limits(slo), target_of(slo)
    if limits:
        goals.append(
            Goal(f"{100 * target:g}% of requests within {describe_limits(limits)}", (*limits.items(),), target)
        )
    for key, limit in slo.items():
        metric, share = parse(key)
        if share is not None:
            goals.append(Goal(f"{titled(metric)} P{100 * share:g} ≤ {1e3 * limit:g} ms", ((metric, limit),), share))
    return tuple(goals)


def titled(metric: str) -> str:
    return metric.upper() if "_" not in metric else metric.replace("_", " ")


def describe_limits(limits: Mapping[str, float]) -> str:
    return " and ".join(f"{titled(metric)} ≤ {1e3 * limit:g} ms" for metric, limit in limits.items())


def values_of(requests: pd.DataFrame, metric: str) -> "pd.Series[float]":
    """A latency (s) of each request; NaN where it has none."""
    if metric == "scheduling_delay":
        return requests["scheduled_time"] - requests["arrival_time"]
    return requests[metric]


def meets_slo(requests: pd.DataFrame, slo: Mapping[str, float]) -> "pd.Series[bool]":
    """Whether each request keeps every limit that requests have to keep."""
    return meets_limits(requests, request_limits(slo))


def meets_limits(requests: pd.DataFrame, limits: Mapping[str, float]) -> "pd.Series[bool]":
    """Finished, and within every limit (s); an undefined TPOT (one-token output) breaks no limit."""
    met = requests["finish_time"].notna()
    for metric, limit in limits.items():
        met &= ~(values_of(requests, metric) > limit)
    return met


def share_within(requests: pd.DataFrame, goal: Goal) -> float:
    """Of the requests, or their gaps between tokens, within the goal's limits; a request that is refused is not.

    NaN where there is neither.
    """
    limits = dict(goal.limits)
    if GAPS not in limits:
        return float(meets_limits(requests, limits).mean()) if len(requests) else float("nan")
    gaps = [np.diff(times) for times in requests["token_times"]]
    num_refused = int(requests["finish_time"].isna().sum())
    pooled = np.concatenate(gaps) if gaps else np.empty(0)
    num = len(pooled) + num_refused
    return float((pooled <= limits[GAPS]).sum() / num) if num else float("nan")
