"""Figures of the study of allocation: what KV memory holds, on the mean and over time, and how many requests run."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.allocation.tables import PARTS, Reported, shares_of
from framework.report.plots import COLOURS, COLUMN_WIDTH, TEXT_WIDTH, styled
from framework.report.tables import short

PART_COLOURS = dict(zip(PARTS, ("#0072B2", "#56B4E9", "#D55E00", "#CC79A7", "#E69F00", "#dddddd"), strict=True))
MOST_TIMES = 400  # of a panel over time; more are drawn as means
COLUMNS = 3
BAR_WIDTH = 0.4


@styled
def memory_shares(rows: pd.DataFrame, reported: Reported) -> Figure:
    """Shares of the KV cache by arm, one bar each; a dotted line where a source reports that of tokens."""
    figure = Figure(figsize=(COLUMN_WIDTH, 2.6))
    axes = figure.subplots()
    bottom = pd.Series(0.0, index=rows.index)
    for part in PARTS:
        if (rows[part] > 0).any():
            axes.bar(range(len(rows)), 100 * rows[part], bottom=bottom, color=PART_COLOURS[part], label=part)
            bottom += 100 * rows[part]
    lines = [
        (reported[arm]["tokens"], place - 0.45, place + 0.45)
        for place, arm in enumerate(rows["arm"])
        if "tokens" in reported.get(arm, {})
    ]
    if lines:
        shares, starts, ends = zip(*lines, strict=True)
        axes.hlines(shares, starts, ends, "#000000", ":", label="tokens, reported")
    axes.set_xticks(range(len(rows)), rows["arm"])
    axes.set(ylabel="KV cache (%)", ylim=(0, 100))
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


@styled
def running_requests(rows: pd.DataFrame, reported: Reported) -> Figure:
    """Mean running requests by arm, measured and (hollow) as a source reports."""
    figure = Figure(figsize=(COLUMN_WIDTH, 2.4))
    axes = figure.subplots()
    reported_running = [reported.get(arm, {}).get("running") for arm in rows["arm"]]
    has_reported = any(value is not None for value in reported_running)
    series = {"measured": list(rows["running"])} | ({"reported": reported_running} if has_reported else {})
    for index, (whose, values) in enumerate(series.items()):
        style: dict[str, Any] = (
            {"facecolor": COLOURS[0]} if whose == "measured" else {"facecolor": "none", "linestyle": ":"}
        )
        shift = (index - 0.5) * BAR_WIDTH if has_reported else 0.0
        shown = [(place + shift, value) for place, value in enumerate(values) if value is not None]
        places, heights = zip(*shown, strict=True)
        bars = axes.bar(places, heights, width=0.9 * BAR_WIDTH, edgecolor=COLOURS[0], label=whose, **style)
        axes.bar_label(bars, [short(value) for value in heights], fontsize=6, padding=1)
    axes.set_xticks(range(len(rows)), rows["arm"])
    axes.set(ylabel="running requests, mean", xlim=(-0.6, len(rows) - 0.4))
    axes.margins(y=0.12)
    axes.grid(axis="x", visible=False)
    if has_reported:
        figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def memory_over_time(steps: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Shares of the KV cache over time (s), stacked, a panel per arm."""
    num_rows = -(-len(steps) // COLUMNS)
    figure = Figure(figsize=(TEXT_WIDTH, 0.6 + 1.5 * num_rows))
    grid = figure.subplots(num_rows, min(COLUMNS, len(steps)), sharey=True, squeeze=False)
    shares = {arm: thinned(table) for arm, table in steps.items()}
    shown = [part for part in PARTS if any((table[part] > 0).any() for table in shares.values())]
    for axes, (arm, table) in zip(grid.flat, shares.items(), strict=False):
        parts = [100 * table[part] for part in shown]
        axes.stackplot(table["time"], *parts, labels=shown, colors=[PART_COLOURS[part] for part in shown], linewidth=0)
        axes.set(title=arm, ylim=(0, 100), xlim=(0, table["time"].max()))
    for axes in list(grid.flat)[len(shares) :]:
        axes.remove()
    figure.supxlabel("time (s)", fontsize=8)
    figure.supylabel("KV cache (%)", fontsize=8)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(shown), title=title, title_fontsize=8)
    return figure


def thinned(steps: pd.DataFrame) -> pd.DataFrame:
    """The shares with their `time`, as means over equal numbers of steps."""
    table = shares_of(steps).assign(time=steps["start_time"] - steps["start_time"].min())
    size = -(-len(table) // MOST_TIMES)
    return table.groupby(pd.RangeIndex(len(table)) // size).mean()
