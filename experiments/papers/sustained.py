"""The rate that an arm sustains at a limit on latency, and how many times another arm's it is."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, permutations

import pandas as pd

from framework.measure.rates import aggregate
from framework.study.auto_rates import Rates

LIMITS = (1.5, 2.0, 3.0, 4.0, 6.0)


def mean_rows(points: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row per arm and rate: `arm`, `rate`, `offered_rate` and `metric`, means over seeds."""
    return aggregate(points)[["arm", "rate", "offered_rate", metric]]


def sustained_rate(rates: Sequence[float], latencies: Sequence[float], limit: float) -> float:
    """The rate at which a latency first passes `limit`: between two rates, linear in the latency's logarithm.

    NaN if it is above the limit at the lowest rate already, or at none.
    """
    pairs = sorted(zip(rates, latencies, strict=True))
    for (low, below), (high, above) in pairwise(pairs):
        if below <= limit < above:
            return low + (high - low) * math.log(limit / below) / math.log(above / below)
    return math.nan


def sustained_rates(rows: pd.DataFrame, metric: str, limit: float) -> dict[str, float]:
    """By arm, of what `mean_rows` makes."""
    return {
        str(arm): sustained_rate(line["offered_rate"], line[metric], limit)
        for arm, line in rows.groupby("arm", sort=False)
    }


def ratios(rates: Mapping[str, float]) -> dict[str, float]:
    """'a ÷ b' of every two arms."""
    return {f"{a} ÷ {b}": rates[a] / rates[b] for a, b in permutations(rates, 2)}


def ratios_over_limits(rows: pd.DataFrame, metric: str, cases: Sequence[str]) -> pd.DataFrame:
    """The `cases` of `ratios` at several limits, in multiples of the lowest latency: how much hangs on the limit."""
    lowest = rows[metric].min()
    at = {times: ratios(sustained_rates(rows, metric, times * lowest)) for times in LIMITS}
    return pd.DataFrame(
        [{"limit ÷ lowest": times} | {case: found[case] for case in cases} for times, found in at.items()]
    )


def sustained_table(rates: Mapping[str, float], limit: float, capacity: float, base: str) -> pd.DataFrame:
    """What each arm sustains at `limit` (s), also as a multiple of `capacity`, what the arm `base` serves at most."""
    return pd.DataFrame(
        {
            "arm": list(rates),
            "limit (ms)": 1e3 * limit,
            "sustained (req/s)": list(rates.values()),
            f"× what {base} serves at most": [rate / capacity for rate in rates.values()],
        }
    )


def base_of(rates: Rates, points: pd.DataFrame) -> tuple[str, float]:
    """The arm that the study's rates are multiples of, and what it serves at most (requests/s).

    ValueError for rates that are no multiples.
    """
    if not isinstance(rates, dict):
        raise ValueError(f"rates={rates} are no multiples: give {{of: ARM, multiples: [0.5, 1, 2]}}")
    return rates["of"], points["rate"].max() / max(rates["multiples"])
