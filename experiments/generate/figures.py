"""The time of every token of generated outputs."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from framework.report.plots import COLOURS, COLUMN_WIDTH, arm_style, styled


@styled
def output_times(times: pd.DataFrame, title: str) -> Figure:
    """Time per token (ms) over the token's index, one curve per output (the first eight).

    `times` has the columns `output` (from 0), `adapter` (null: none), `token` (from 1) and `elapsed` (s).
    """
    figure = Figure(figsize=(COLUMN_WIDTH * 1.35, 2.4))
    axes = figure.subplots()
    for output, rows in times[times["output"] < len(COLOURS)].groupby("output"):
        adapter = rows["adapter"].iloc[0]
        label = f"output {output + 1}" + (f", {adapter}" if pd.notna(adapter) else "")
        style = arm_style(int(output)) | {"linewidth": 1, "markersize": 3}
        axes.plot(rows["token"], 1e3 * rows["elapsed"], label=label, **style)
    axes.set(xlabel="output token", ylabel="time of this token (ms)", title=title)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure
