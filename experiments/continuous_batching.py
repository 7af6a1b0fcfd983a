"""Static against continuous batching over arrival rates (Orca, OSDI 2022; lesson 3 of "Efficiently Serving LLMs")."""

from functools import partial
from typing import Any

import pandas as pd
from typing_extensions import Unpack

from framework.measure.rates import TARGET_ATTAINMENT, aggregate, capacity, saturation
from framework.replay import Clock
from framework.report import sweep_plots
from framework.report.finish import report
from framework.report.plots import Figure
from framework.report.tables import rate_title
from framework.study.arms import parts_of, resolve_arms
from framework.study.sweep import Study, Sweep, read_tables, representative_points, run_study


def run(*, clock: Clock, reference: dict[str, Any] | None = None, **sweep: Unpack[Sweep]) -> None:
    """Replay every arm at every rate (requests/s; null: as recorded) and draw latency against throughput and rate.

    `slo`: seconds per metric. `reference`: `{arms: [slow, fast], ratio, source}`, a source's ratio of the two arms'
    durations, printed beside the measured one.
    """
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"clock": clock})
    study = run_study(arms, sweep)
    notes = None if reference is None else partial(compare_durations, **reference)
    report(study, "continuous_batching", draw, sweep.get("tracking"), notes=notes)
    study.raise_failures()


def draw(study: Study, points: pd.DataFrame) -> dict[str, Figure]:
    """The curves over all rates, and timelines at the first rate that is too much for some arm."""
    summary, saturation_rates = aggregate(points), saturation(points)
    too_much = summary["rate"][summary["is_saturated"]]
    rate = too_much.min() if len(too_much) else points["rate"].max()
    folders = representative_points(study, points, rate)
    title = rate_title(rate)
    curves = {}
    if len(set(points["rate"])) > 1:
        curves["latency_rate"] = sweep_plots.latency_rate(summary, saturation_rates)
        curves["throughput_latency"] = sweep_plots.throughput_latency(summary)
        if study.slo:
            curves["attainment_rate"] = sweep_plots.attainment_rate(summary, capacity(points), TARGET_ATTAINMENT)
    return curves | {
        "timeline": sweep_plots.timeline(read_tables(folders, "requests.parquet"), title),
        "batch_and_cache": sweep_plots.batch_and_cache(read_tables(folders, "steps.parquet"), title),
    }


def compare_durations(points: pd.DataFrame, arms: list[str], ratio: float, source: str) -> list[str]:
    """How much longer the first arm took than the second, where both have a point, beside the source's number."""
    durations = points.pivot_table(index=["rate", "seed"], columns="arm", values="duration_s").T
    missing = [arm for arm in arms if arm not in durations.index]
    if missing:
        raise ValueError(f"reference.arms names {', '.join(missing)}; arms with points: {', '.join(durations.index)}")
    both = durations.loc[arms].dropna(axis="columns")
    if both.empty:
        return [f"{arms[0]} and {arms[1]} have no point in common"]
    slow, fast = both.mean(axis="columns")
    measured = f"{arms[0]} ÷ {arms[1]}: {slow:.2f} s ÷ {fast:.2f} s = {slow / fast:.2f}×"
    return [f"{measured}   (reported: {ratio:g}×, {source})"]
