"""Figures of calibrate: predicted against measured seconds, and how their ratios are spread."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from framework.report.plots import COLUMN_WIDTH, GREY, TEXT_WIDTH, arm_colour, label_log_axis, styled

MAX_DRAWN = 2000  # steps of a kind


@styled
def predicted_against_measured(steps: pd.DataFrame, title: str) -> Figure:
    """Milliseconds of `framework.cost.error.predicted`, a colour per kind of step."""
    figure = Figure(figsize=(COLUMN_WIDTH, 2.9))
    axes = figure.subplots()
    for index, (kind, rows) in enumerate(steps.groupby("kind")):
        drawn = rows.iloc[:: -(-len(rows) // MAX_DRAWN)]
        style = {"s": 5, "alpha": 0.5, "linewidths": 0, "color": arm_colour(index), "label": kind, "rasterized": True}
        axes.scatter(1e3 * drawn["measured"], 1e3 * drawn["median"], **style)
    ends = 1e3 * np.array([steps[["measured", "median"]].min().min(), steps[["measured", "median"]].max().max()])
    axes.plot(ends, ends, color=GREY, linestyle="--")
    axes.set(title=title, xlabel="measured (ms)", ylabel="predicted (ms)", xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        label_log_axis(axis)
    axes.legend()
    return figure


@styled
def ratios_by_kind(steps: pd.DataFrame, title: str) -> Figure:
    """The share of steps over measured / predicted median, a panel per kind of step."""
    kinds = dict(list(steps.groupby("kind")))
    figure = Figure(figsize=(TEXT_WIDTH if len(kinds) > 1 else COLUMN_WIDTH, 2.4))
    figure.suptitle(title, fontsize=8)
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for index, (axes, (kind, rows)) in enumerate(zip(panels, kinds.items(), strict=True)):
        ratios = np.sort(rows["measured"] / rows["median"])
        low, high = ((rows[end] / rows["median"]).median() for end in ("low", "high"))
        axes.axvspan(low, high, color=GREY, alpha=0.15, linewidth=0)
        axes.plot(ratios, np.linspace(0, 1, len(ratios)), color=arm_colour(index), drawstyle="steps-post")
        inner = np.quantile(ratios, [0.002, 0.998]) * [0.98, 1.02]
        axes.set(title=f"{kind} steps", xlabel="measured ÷ predicted", ylabel="share of steps", xlim=inner)
    return figure
