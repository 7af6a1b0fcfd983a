"""The tables and sentences on rates: every scheduler against the first, what keeps a limit on gaps, reported values."""

from math import inf

import pandas as pd

from framework.measure.metric import MILLISECONDS
from framework.measure.metrics import METRIC_OF
from framework.report.tables import rate_title, short, shown_rates
from framework.study.sweep import Study

Latencies = dict[str, dict[str, float]]  # arm → metric → seconds
MAX_DELAY = 2.0  # seconds from arrival to the first step, the median over the requests: Sarathi's limit
SAME = "yes: other model, other device"
NO_LESS = 0.99  # of a throughput, which counts as no less


def against_first(summary: pd.DataFrame) -> pd.DataFrame:
    """One row per rate and arm of what `aggregate` made: TTFT, P99 ITL, output throughput, and these over the first's.

    The first is the first arm.
    """
    first = summary[summary["arm"] == summary["arm"].iloc[0]].set_index("rate")
    base = first.reindex(summary["rate"]).reset_index()
    name = summary["arm"].iloc[0]
    table = pd.DataFrame(
        {
            "arm": summary["arm"],
            "rate (req/s)": shown_rates(summary["offered_rate"]),
            "TTFT P50 (ms)": 1e3 * summary["ttft_p50"],
            "TTFT P99 (ms)": 1e3 * summary["ttft_p99"],
            "ITL P99 (ms)": 1e3 * summary["itl_p99"],
            f"ITL P99 ÷ {name}": summary["itl_p99"] / base["itl_p99"],
            "output (tok/s)": summary["output_throughput"],
            f"output ÷ {name}": summary["output_throughput"] / base["output_throughput"],
        }
    )
    return table.iloc[summary.sort_values("rate", kind="stable").index].reset_index(drop=True)


def describe_rates(summary: pd.DataFrame) -> list[str]:
    """At the highest rate: what has a lower P99 ITL than the first arm and serves no less, and the lowest of all."""
    highest = summary[summary["rate"] == summary["rate"].max()].set_index("arm")
    first = str(summary["arm"].iloc[0])
    if first not in highest.index or len(highest) < 2:
        return []
    base, others = highest.loc[first], highest.drop(first)
    gaps, output = others["itl_p99"] / base["itl_p99"], others["output_throughput"] / base["output_throughput"]
    said = f"{first} has a P99 ITL of {short(1e3 * base['itl_p99'])} ms at {rate_title(base['offered_rate'])}"
    if gaps.isna().all():  # outputs of one token have no gaps
        return []
    lowest = gaps.idxmin()
    of_lowest = f"that of {lowest}, {gaps[lowest]:.2f}× at {output[lowest]:.2f}× the tokens/s"
    if gaps[lowest] >= 1:
        return [f"{said}, and no other scheduler has a lower one; the next is {of_lowest}"]
    level = gaps[output >= NO_LESS].dropna()
    best = None if level.empty else level.idxmin()
    if best is None:
        said += f"; every other scheduler serves at least {1 - NO_LESS:.0%} fewer tokens/s"
    elif gaps[best] >= 1:
        said += "; none that serves as many tokens/s has a lower one"
    else:
        said += f"; of those that serve as many tokens/s, {best} has the lowest: {gaps[best]:.2f}× of it"
    if best != lowest:
        said += f"; the lowest of all is {of_lowest}"
    return [said]


def limits_table(study: Study, points: pd.DataFrame, limits: list[float]) -> pd.DataFrame:
    """Per arm, the highest offered rate (1/s) that keeps each of `limits` (s) on the P99 ITL, as Sarathi counts it.

    Requests that arrive all at once have no rate, and count for none.
    """
    delays = [median_delay(study, point) for point in points["point"]]
    means = points.assign(delay=delays).groupby(["arm", "rate"], sort=False, as_index=False).mean(numeric_only=True)
    table = pd.DataFrame({"arm": means["arm"].unique()})
    for limit in limits:
        kept = means[(means["itl_p99"] <= limit) & (means["delay"] <= MAX_DELAY) & (means["offered_rate"] < inf)]
        highest = kept.groupby("arm")["offered_rate"].max()
        table[f"P99 ITL ≤ {1e3 * limit:g} ms"] = table["arm"].map(highest)
    return table


def median_delay(study: Study, point: str) -> float:
    """Seconds from arrival to the first step, the median over the requests that were served."""
    columns = ["arrival_time", "scheduled_time"]
    requests = pd.read_parquet(study.folder(point) / "requests.parquet", columns=columns)
    return float((requests["scheduled_time"] - requests["arrival_time"]).median())


def latencies_table(summary: pd.DataFrame, reported: Latencies) -> pd.DataFrame:
    """One row per reported metric, rate and arm: reported, measured, and each over that of the first arm reported."""
    first = next(iter(reported))
    rows = []
    for metric in reported[first]:
        for rate, at_rate in summary.groupby("rate"):
            measured = at_rate.set_index("arm")[metric]
            for arm, values in reported.items():
                value = measured.get(arm, float("nan"))
                rows.append(
                    {
                        "metric": METRIC_OF[metric].header(metric).removesuffix(" (ms)"),
                        "rate (req/s)": float(rate),
                        "arm": arm,
                        "reported": values[metric],
                        "measured": value,
                        "measured ÷ reported": value / values[metric],
                        f"reported ÷ {first}": values[metric] / reported[first][metric],
                        f"measured ÷ {first}": value / measured.get(first, float("nan")),
                        "same quantity": SAME,
                    }
                )
    return pd.DataFrame(rows)


def check_latencies(reported: Latencies, arms: list[str]) -> None:
    """ValueError for an arm that there is not, or a metric that no point has; every arm has the same ones."""
    metrics = [*next(iter(reported.values()), {})]
    for arm, values in reported.items():
        if arm not in arms:
            raise ValueError(f"reported_latencies has {arm!r}, which is no arm; allowed: {', '.join(arms)}")
        for metric in values:
            if metric not in METRIC_OF or METRIC_OF[metric].unit is not MILLISECONDS:
                raise ValueError(f"reported_latencies.{arm} has {metric!r}, which is no latency of points.csv")
        if [*values] != metrics:
            raise ValueError(f"reported_latencies.{arm} has {', '.join(values)}, the first arm {', '.join(metrics)}")
