"""Figures of a sweep: latency over rate and throughput, attainment, timelines, distributions."""

from collections.abc import Iterable, Mapping
from math import inf
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from framework.measure.clients import jain_over_time, service_over_time
from framework.measure.rates import aggregate, first_too_much, highest_within, offered_at, saturation
from framework.measure.slo import request_limits, target_of
from framework.report.plots import (
    COLUMN_WIDTH,
    GREY,
    LINES,
    TEXT_WIDTH,
    Drawn,
    arm_colour,
    arm_style,
    errors,
    label_log_axis,
    styled,
)
from framework.report.tables import rate_title, short
from framework.study.sweep import Study, read_tables, representative_points

CAPTIONS = {
    "latency_rate": "Mean normalized latency, TTFT and TPOT over the offered rate, one curve per arm. Dotted: the most "
    "that the arm served.",
    "throughput_latency": "Mean normalized latency over output throughput, one curve per arm, one marker per rate. "
    "A ring: the last rate below saturation.",
    "attainment_rate": "Requests within the SLOs over the offered rate. Horizontal: the target; vertical: the "
    "highest rate of each arm at which it is met, below saturation. A ring: the last rate below saturation.",
    "pareto": "Output throughput per GPU over the speed that a user sees (1 / TPOT, median over requests), one curve "
    "per arm, one marker per rate: up and to the right is better.",
    "clients": "Service of each client so far, and Jain's index of the clients that had something to serve, over time, "
    "of each arm (line style).",
    "timeline": "The first requests of each arm, one bar per request: waiting, prefill, decode.",
    "batch_and_cache": "Sequences per step that decodes, and KV blocks in use, over time, one curve per arm. Dotted: "
    "and those that its prefix cache keeps.",
    "latency_cdf": "Distribution over requests of TTFT and TPOT, one curve per arm.",
}
TIMELINE = ("arrival_time", "scheduled_time", "first_token_time", "finish_time")  # columns of requests
BATCH_AND_CACHE = (  # columns of steps
    "start_time", "elapsed", "update", "phase", "num_seqs", "num_used_blocks", "num_cached_blocks",
)  # fmt: skip
IDLE = 1e-3  # seconds; a shorter gap is the simulator at work
MAX_SPAN = 10  # of the times per token on a linear axis; beyond it the slowest arm would hide the others
MAX_TICKS = 7
TICK_SPAN = 0.06  # of a logarithmic axis, between two ticks at least
MAX_BESIDE = 7  # entries of a legend in one row
PHASE_COLOURS = {"waiting": "#dddddd", "prefill": "#E69F00", "decode": "#0072B2"}


def sweep_figures(study: Study, points: pd.DataFrame) -> dict[str, Drawn]:
    """The curves over all rates, and timelines at the first rate that is too much for some arm."""
    rate = first_too_much(aggregate(points))
    folders = representative_points(study, points, rate)
    requests = read_tables(folders, "requests.parquet", columns=[*TIMELINE, "refused", "client_id"])
    timelines = captioned({"timeline": timeline(requests, rate_title(offered_at(points, rate)))})
    figures = rate_figures(study, points) | timelines | cache_figure(study, points, rate)
    has_clients = all(len(table["client_id"].dropna().unique()) > 1 for table in requests.values())
    return figures | (clients_figure(folders) if has_clients else {})


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
    return captioned(figures)


def cache_figure(study: Study, points: pd.DataFrame, rate: float) -> dict[str, Drawn]:
    """The batch and the KV cache over time, at `rate` (requests/s)."""
    steps = read_tables(representative_points(study, points, rate), "steps.parquet", columns=[*BATCH_AND_CACHE])
    return captioned({"batch_and_cache": batch_and_cache(steps, rate_title(offered_at(points, rate)))})


def clients_figure(folders: dict[str, Path]) -> dict[str, Drawn]:
    """Per-client service over time, of points whose requests are of several clients."""
    columns = ["client_id", "num_prompt_tokens", "token_times", *TIMELINE]
    return captioned({"clients": clients_over_time(read_tables(folders, "requests.parquet", columns=columns))})


def cdf_figure(study: Study, points: pd.DataFrame, rate: float) -> dict[str, Drawn]:
    """The distribution over requests, at `rate` (requests/s)."""
    requests = read_tables(representative_points(study, points, rate), "requests.parquet", columns=["ttft", "tpot"])
    return captioned({"latency_cdf": latency_cdf(requests)})


def captioned(figures: dict[str, Figure]) -> dict[str, Drawn]:
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


@styled
def timeline(requests: dict[str, pd.DataFrame], title: str, num_requests: int = 60) -> Figure:
    """Per arm, one bar per request (the first `num_requests` served): waiting, prefill, decode over time (s)."""
    figure = Figure(figsize=(COLUMN_WIDTH, 1.9 * len(requests) + 0.3))
    panels = figure.subplots(len(requests), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (arm, table) in zip(panels, requests.items(), strict=True):
        shown = table[table["refused"].isna()].head(num_requests)
        times = [shown[name] for name in TIMELINE]
        for (phase, colour), start, end in zip(PHASE_COLOURS.items(), times, times[1:], strict=False):
            axes.barh(np.arange(len(shown)), end - start, left=start, height=0.85, color=colour, label=phase)
        axes.set(title=f"{arm}, {title}", ylabel="request")
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    panels[-1].set_xlabel("time (s)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


@styled
def batch_and_cache(steps: dict[str, pd.DataFrame], title: str) -> Figure:
    """Sequences per step that decodes, and KV blocks in use, over time (s), one curve per arm.

    Where a prefix cache keeps blocks, a dotted curve has these on top.
    """
    figure = Figure(figsize=(COLUMN_WIDTH, 3.0))
    upper, lower = figure.subplots(2, 1, sharex=True)
    for index, (arm, table) in enumerate(steps.items()):
        num_seqs = table["num_seqs"].where(table["phase"] != "prefill").ffill().fillna(0)
        for axes, name in ((upper, "num_seqs"), (lower, "num_used_blocks")):
            times, values = with_idle_gaps(table.assign(num_seqs=num_seqs), name)
            axes.step(times, values, where="post", color=arm_colour(index), linewidth=0.8, label=arm)
        if table["num_cached_blocks"].any():
            num_kept = table["num_used_blocks"] + table["num_cached_blocks"]
            lower.step(table["start_time"], num_kept, where="post", color=arm_colour(index), linewidth=0.8, ls=":")
    upper.set(title=title, ylabel="sequences decoding")
    lower.set(ylabel="KV blocks in use", xlabel="time (s)")
    for axes in (upper, lower):
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, nbins=5))
    figure.legend(*upper.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def with_idle_gaps(steps: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Times (s) and values of a step function that is zero while the server sleeps."""
    starts = steps["start_time"].to_numpy()
    ends = starts + (steps["elapsed"] + steps["update"]).to_numpy()
    is_idle = np.append(starts[1:] > ends[:-1] + IDLE, True)
    times = np.concatenate([starts, ends[is_idle]])
    values = np.concatenate([steps[name].to_numpy(), np.zeros(is_idle.sum())])
    order = np.argsort(times, kind="stable")
    return times[order], values[order]


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


def add_wide_legend(figure: Figure, arms: Iterable[str], lines: Mapping[str, Any]) -> None:
    """Above the axes of a figure as wide as the text: the arms in their styles, and labels → line styles in grey."""
    handles = [Line2D([], [], **arm_style(index), label=arm) for index, arm in enumerate(arms)]
    handles += [Line2D([], [], color=GREY, linestyle=line, label=label) for label, line in lines.items()]
    num_rows = -(-len(handles) // MAX_BESIDE)
    figure.legend(handles=handles, loc="outside upper center", ncols=-(-len(handles) // num_rows))


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


@styled
def clients_over_time(requests: dict[str, pd.DataFrame]) -> Figure:
    """Service (tokens) of each client so far, a colour each, and Jain's index, over time (s); a line style per arm."""
    figure = Figure(figsize=(COLUMN_WIDTH, 3.4))
    upper, lower = figure.subplots(2, 1, sharex=True)
    for index, (arm, table) in enumerate(requests.items()):
        line = LINES[index % len(LINES)]
        service = service_over_time(table, table["arrival_time"].min(), table["finish_time"].max())
        for number, (client, given) in enumerate(service.items()):
            label = f"client {client}" if index == 0 and number < MAX_BESIDE else None
            upper.plot(service.index, given.fillna(0).cumsum(), color=arm_colour(number), linestyle=line, label=label)
        lower.plot(service.index, jain_over_time(service), color=GREY, linestyle=line, label=arm)
    upper.set(ylabel="service so far (tokens)")
    lower.set(ylabel="Jain's index", xlabel="time (s)", ylim=(0, 1.05))
    handles = [*upper.get_legend_handles_labels()[0], *lower.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


@styled
def latency_cdf(requests: dict[str, pd.DataFrame]) -> Figure:
    """Empirical distribution over requests of TTFT and TPOT (ms), one curve per arm."""
    figure = Figure(figsize=(TEXT_WIDTH / 1.5, 2.2))
    for axes, (metric, title) in zip(
        figure.subplots(1, 2, sharey=True),
        (("ttft", "time to first token"), ("tpot", "time per output token")),
        strict=True,
    ):
        for index, (arm, table) in enumerate(requests.items()):
            values = np.sort(1e3 * table[metric].dropna())
            shares = np.arange(1, len(values) + 1) / len(values)
            axes.step(values, shares, where="post", color=arm_colour(index), linestyle=LINES[index % 4], label=arm)
        axes.set(title=title, xlabel="ms", xscale="log")
        label_log_axis(axes.xaxis)
    figure.axes[0].set_ylabel("share of requests")
    figure.axes[0].legend()
    return figure
