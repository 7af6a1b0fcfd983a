"""Figures of a sweep over its rates: latency, throughput, attainment, a curve for each arm."""

from math import inf

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from framework.measure.rates import aggregate, highest_within, saturation
from framework.measure.slo import request_limits, target_of
from framework.report.plots import (
    COLUMN_WIDTH,
    GREY,
    LINES,
    TEXT_WIDTH,
    Drawn,
    add_wide_legend,
    arm_colour,
    arm_style,
    errors,
    label_log_axis,
    styled,
)
from framework.report.tables import short
from framework.study.sweep import Study

CAPTIONS = {
    "latency_rate": "Mean normalized latency, TTFT and TPOT over the offered rate, one curve per arm. Dotted: the most "
    "that the arm served.",
    "throughput_latency": "Mean normalized latency over output throughput, one curve per arm, one marker per rate. "
    "A ring: the last rate below saturation.",
    "attainment_rate": "Requests within the SLOs over the offered rate. Horizontal: the target; vertical: the "
    "highest rate of each arm at which it is met, below saturation. A ring: the last rate below saturation.",
    "pareto": "Output throughput per GPU over the speed that a user sees (1 / TPOT, median over requests), one curve "
    "per arm, one marker per rate: up and to the right is better.",
}
MAX_SPAN = 10  # of the times per token on a linear axis; beyond it the slowest arm would hide the others
MAX_TICKS = 7
TICK_SPAN = 0.06  # of a logarithmic axis, between two ticks at least


def rate_figures(study: Study, points: pd.DataFrame) -> dict[str, Drawn]:
    """The curves over the rates, if there are several."""
    if len(set(points["rate"])) == 1:
        return {}
    summary = aggregate(points)
    figures = {
        "latency_rate": latency_rate(summary, saturation(points)),
        "throughput_latency": throughput_latency(summary),
        "pareto": pareto(summary),
    }
    if request_limits(study.slo):
        target = target_of(study.slo)
        figures["attainment_rate"] = attainment_rate(summary, highest_within(points, target), target)
    return {name: (figure, CAPTIONS[name]) for name, figure in figures.items()}


@styled
def throughput_latency(summary: pd.DataFrame) -> Figure:
    """Normalized latency (ms/token) over output throughput (tok/s), one curve per arm, one marker per rate."""
    figure = Figure(figsize=(COLUMN_WIDTH, 2.5))
    axes = figure.subplots()
    for index, (arm, rows) in enumerate(summary.groupby("arm", sort=False)):
        x, y = rows["output_throughput"], 1e3 * rows["normalized_latency_mean"]
        axes.errorbar(
            x,
            y,
            xerr=errors(rows, "output_throughput"),
            yerr=errors(rows, "normalized_latency_mean", 1e3),
            **arm_style(index),
            label=arm,
        )
        if rows["is_saturated"].any():
            mark_saturation(axes, rows, x, y, arm_colour(index))
    axes.set(xlabel="output throughput (tokens/s)", ylabel="mean latency (ms/output token)", yscale="log")
    axes.set_xlim(left=0)
    label_log_axis(axes.yaxis)
    add_legend(figure, axes, ring=True)
    return figure


@styled
def pareto(summary: pd.DataFrame) -> Figure:
    """Output tokens per second and GPU over those per second and user, one curve per arm, one marker per rate."""
    figure = Figure(figsize=(COLUMN_WIDTH, 2.5))
    axes = figure.subplots()
    for index, (arm, rows) in enumerate(summary.groupby("arm", sort=False)):
        axes.errorbar(
            rows["user_speed_p50"],
            rows["output_throughput_per_gpu"],
            xerr=errors(rows, "user_speed_p50"),
            yerr=errors(rows, "output_throughput_per_gpu"),
            **arm_style(index),
            label=arm,
        )
    axes.set(xlabel="speed per user (tokens/s)", ylabel="output throughput per GPU (tokens/s)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    add_legend(figure, axes, ring=False)
    return figure


@styled
def latency_rate(summary: pd.DataFrame, saturation_rates: dict[str, float]) -> Figure:
    """Normalized latency, TTFT and TPOT (ms) over the arrival rate; dotted lines at the most each arm served."""
    panels = (
        ("mean latency per output token", ["normalized_latency_mean"]),
        ("time to first token", ["ttft_p50", "ttft_p99"]),
        ("time per output token", ["tpot_p50", "tpot_p99"]),
    )
    figure = Figure(figsize=(TEXT_WIDTH, 2.6))
    for axes, (title, metrics) in zip(figure.subplots(1, 3), panels, strict=True):
        for index, (arm, rows) in enumerate(summary.groupby("arm", sort=False)):
            for line, metric in zip(LINES, metrics, strict=False):
                axes.errorbar(
                    rows["offered_rate"],
                    1e3 * rows[metric],
                    yerr=errors(rows, metric, 1e3),
                    linestyle=line,
                    **arm_style(index),
                    elinewidth=0.7,
                )
            axes.axvline(saturation_rates[str(arm)], color=arm_colour(index), linestyle=":", linewidth=1)
        axes.set(title=title, xlabel="arrival rate (requests/s)", ylabel="ms", xscale="log")
        label_rates(axes, summary["offered_rate"])
    for axes, (_, metrics), max_span in zip(figure.axes, panels, (1, 1, MAX_SPAN), strict=True):
        scale_latencies(axes, summary[metrics], max_span)
    lines = {"mean or P50": "-", "P99": "--", "most it served": ":"}
    add_wide_legend(figure, summary["arm"].unique(), lines)
    return figure


@styled
def attainment_rate(summary: pd.DataFrame, within: dict[str, float], target: float) -> Figure:
    """Share of requests within every SLO over the arrival rate; the dashed lines are the target and the rates `within`.

    A ring is around the last rate below saturation: no rate beyond it counts.
    """
    figure = Figure(figsize=(COLUMN_WIDTH, 2.6))
    axes = figure.subplots()
    for index, (arm, rows) in enumerate(summary.groupby("arm", sort=False)):
        colour, shares = arm_colour(index), 100 * rows["slo_attainment"]
        axes.errorbar(
            rows["offered_rate"],
            shares,
            yerr=errors(rows, "slo_attainment", 100),
            **arm_style(index),
            label=arm,
        )
        if rows["is_saturated"].any():
            mark_saturation(axes, rows, rows["offered_rate"], shares, colour)
        dashes = (4 * index, (4, 4 * max(1, len(within) - 1)))  # equal rates take turns along one line
        axes.axvline(within[str(arm)], color=colour, linestyle=dashes, linewidth=1)
    axes.axhline(100 * target, color=GREY, linestyle=LINES[1], linewidth=0.8)
    axes.set(xlabel="arrival rate (requests/s)", ylabel="requests within the SLOs (%)", xscale="log", ylim=(0, 105))
    label_rates(axes, summary["offered_rate"])
    add_legend(figure, axes, ring=bool(summary["is_saturated"].any()))
    return figure


def mark_saturation(axes: Axes, rows: pd.DataFrame, x: pd.Series, y: pd.Series, colour: str) -> None:
    """A ring around the last point that does not saturate the arm."""
    at = rows["rate"] == rows["rate"][~rows["is_saturated"]].max()
    axes.plot(x[at], y[at], "o", markersize=9, markerfacecolor="none", markeredgecolor=colour, linestyle="none")


def add_legend(figure: Figure, axes: Axes, ring: bool) -> None:
    """Above the axes of a narrow figure: inside there is no corner that is free of curves for sure."""
    handles, labels = axes.get_legend_handles_labels()
    if ring:
        handles += axes.plot([], [], "o", markersize=8, markerfacecolor="none", markeredgecolor=GREY)
        labels += ["last rate below saturation"]
    figure.legend(handles, labels, loc="outside upper center", ncols=2)


def scale_latencies(axes: Axes, values: pd.DataFrame, max_span: float) -> None:
    """A logarithmic axis where the largest of `values` is at least `max_span` times the smallest; else one from 0."""
    low, high = values.min(axis=None), values.max(axis=None)
    if low > 0 and high >= max_span * low:
        axes.set_yscale("log")
        label_log_axis(axes.yaxis)
    elif high > 0:  # TPOT is undefined where every output has one token
        axes.set_ylim(bottom=0)


def label_rates(axes: Axes, rates: pd.Series) -> None:
    """Tick the rates themselves; thin them out where they would overlap, as those of closed loops do."""
    values = {short(rate): rate for rate in sorted(rates) if rate < inf}
    candidates = list(values)[:: max(1, -(-len(values) // MAX_TICKS))]
    shown: list[str] = []
    for label in candidates:
        least = (values[candidates[-1]] / values[candidates[0]]) ** TICK_SPAN
        if not shown or values[label] >= least * values[shown[-1]]:
            shown.append(label)
    axes.set_xticks([values[label] for label in shown], shown)
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
