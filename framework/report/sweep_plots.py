"""Figures of a sweep: those over its rates, and at one of them timelines, the KV cache, clients, distributions."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from framework.measure.clients import jain_over_time, service_over_time
from framework.measure.rates import aggregate, first_too_much, offered_at
from framework.report.plots import (
    COLUMN_WIDTH,
    GREY,
    LINES,
    MAX_BESIDE,
    TEXT_WIDTH,
    Drawn,
    arm_colour,
    label_log_axis,
    styled,
)
from framework.report.rate_plots import rate_figures
from framework.report.tables import rate_title
from framework.study.sweep import Study, read_tables, representative_points

CAPTIONS = {
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
MAX_DRAWN = 200_000  # points of a curve over time
IDLE = 1e-3  # seconds; a shorter gap is the simulator at work
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


def cache_figure(study: Study, points: pd.DataFrame, rate: float) -> dict[str, Drawn]:
    """The batch and the KV cache over time, at `rate` (requests/s)."""
    folders, columns = representative_points(study, points, rate), [*BATCH_AND_CACHE]
    steps = read_tables(folders, "steps.parquet", columns=columns, read_dictionary=["phase"])
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
        for axes, column in ((upper, num_seqs), (lower, table["num_used_blocks"])):
            times, values = with_idle_gaps(table, column)
            axes.step(*thinned(times, values), where="post", color=arm_colour(index), linewidth=0.8, label=arm)
        if table["num_cached_blocks"].any():
            times, num_kept = table["start_time"], table["num_used_blocks"] + table["num_cached_blocks"]
            lower.step(*thinned(times, num_kept), where="post", color=arm_colour(index), linewidth=0.8, ls=":")
    upper.set(title=title, ylabel="sequences decoding")
    lower.set(ylabel="KV blocks in use", xlabel="time (s)")
    for axes in (upper, lower):
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, nbins=5))
    figure.legend(*upper.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def thinned(times: Any, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """So few of these points, equally far apart, that there are still hundreds in the width of a line."""
    step = max(1, -(-len(times) // MAX_DRAWN))
    return np.asarray(times)[::step], np.asarray(values)[::step]


def with_idle_gaps(steps: pd.DataFrame, column: "pd.Series[float]") -> tuple[np.ndarray, np.ndarray]:
    """Times (s) and values, of one of the steps' columns, of a step function that is zero while the server sleeps."""
    starts = steps["start_time"].to_numpy()
    ends = starts + (steps["elapsed"] + steps["update"]).to_numpy()
    is_idle = np.append(starts[1:] > ends[:-1] + IDLE, True)
    times = np.concatenate([starts, ends[is_idle]])
    values = np.concatenate([column.to_numpy(), np.zeros(is_idle.sum())])
    order = np.argsort(times, kind="stable")
    return times[order], values[order]


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
