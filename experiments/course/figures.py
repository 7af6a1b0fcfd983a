"""Figures of the course's first lessons: the time of every token; throughput and latency over the batch size."""

from math import log

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from framework.report.plots import COLOURS, COLUMN_WIDTH, GREY, LINES, TEXT_WIDTH, arm_style, label_batch_sizes, styled

REGIONS = {"bandwidth-bound": "#56B4E9", "compute-bound": "#E69F00"}
NAME_WIDTH = 0.27  # of the axes, that the name of a region takes
HEADROOM = 1.15  # times the highest value, for these names


@styled
def token_times(curves: pd.DataFrame, faster_from: dict[str, int | None], title: str) -> Figure:
    """Left, time per token (ms) over the token's index; right, the time (s) until it.

    `curves` has the columns `sampling`, `cache`, `token` (from 1) and `elapsed` (s): a colour per `cache`, a line style
    per `sampling`. `faster_from` has the token of each sampling from which on the cache pays: a line left, if there is
    one.
    """
    figure = Figure(figsize=(TEXT_WIDTH, 2.6))
    left, right = figure.subplots(1, 2)
    caches, samplings = list(curves["cache"].unique()), list(curves["sampling"].unique())
    for (sampling, cache), rows in curves.groupby(["sampling", "cache"], sort=False):
        style = {
            "color": COLOURS[caches.index(cache)],
            "linestyle": LINES[samplings.index(sampling) % len(LINES)],
            "label": f"{cache} a cache, {sampling}",
            "linewidth": 1,
        }
        left.plot(rows["token"], 1e3 * rows["elapsed"], **style)
        right.plot(rows["token"], rows["elapsed"].cumsum(), **style)
    for sampling, token in faster_from.items():
        if token is not None:
            style = {"linestyle": LINES[samplings.index(sampling) % len(LINES)], "color": GREY, "linewidth": 0.8}
            left.axvline(token, label=f"cache faster from token {token}, {sampling}", **style)
    left.set(ylabel="time of this token (ms)")
    right.set(ylabel="time until this token (s)")
    for axes in (left, right):
        axes.set(xlabel="output token")
        axes.set_ylim(bottom=0)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, title=title, title_fontsize=8)
    return figure


@styled
def batch_tradeoff(sizes: pd.DataFrame, compute_bound_from: float, title: str) -> Figure:
    """Throughput (tok/s, left axis) and latency per token (ms, right axis) over the batch size, log₂.

    `sizes` has the columns `batch_size`, `throughput` (tok/s), `latency` and `floor` (s per token). From the batch size
    `compute_bound_from` on, the arithmetic of a step takes longer than its reads.
    """
    figure = Figure(figsize=(COLUMN_WIDTH * 1.35, 3.0))
    left = figure.subplots()
    right = left.twinx()
    batch_sizes = sizes["batch_size"]
    left.plot(batch_sizes, sizes["throughput"], **arm_style(0), label="throughput")
    right.plot(batch_sizes, 1e3 * sizes["latency"], **arm_style(1), label="latency per token")
    right.plot(batch_sizes, 1e3 * sizes["floor"], color=GREY, linestyle=":", label="floor of the latency")
    label_batch_sizes(left, batch_sizes)
    shade_regions(left, float(batch_sizes.min()), float(batch_sizes.max()), compute_bound_from)
    left.set_ylabel("throughput (tokens/s)", color=COLOURS[0])
    right.set_ylabel("latency (ms/token)", color=COLOURS[1])
    right.spines["right"].set_visible(True)
    right.grid(visible=False)
    left.set_ylim(0, HEADROOM * sizes["throughput"].max())
    right.set_ylim(0, HEADROOM * 1e3 * sizes[["latency", "floor"]].max(axis=None))
    handles = [*left.get_lines()[:1], *right.get_lines()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, title=title, title_fontsize=8)
    return figure


def shade_regions(axes: Axes, first: float, last: float, border: float) -> None:
    """Shade what binds from the batch size `first` to `last`, with half a doubling to spare on either side.

    A name that is wider than its region stands upright, where the curves leave room: they rise from left to right.
    """
    start, end = first / 2**0.5, last * 2**0.5
    edges = [start, min(max(border, start), end), end]
    for (name, colour), low, high in zip(REGIONS.items(), edges, edges[1:], strict=False):
        if high > low:
            axes.axvspan(low, high, color=colour, alpha=0.13, linewidth=0)
            is_narrow = log(high / low) < NAME_WIDTH * log(end / start)
            y, va = (0.03, "bottom") if is_narrow and low > start else (0.97, "top")
            axes.text(
                (low * high) ** 0.5,
                y,
                name,
                rotation=90 if is_narrow else 0,
                transform=axes.get_xaxis_transform(),
                ha="center",
                va=va,
                fontsize=7,
            )
    axes.set_xlim(start, end)
