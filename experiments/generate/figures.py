"""The time of every token of generated outputs."""

from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from framework.report.plots import COLOURS, COLUMN_WIDTH, MARKERS, STYLE


def output_times(times: pd.DataFrame, title: str) -> Figure:
    """Time per token (ms) over the token's index, one curve per output (the first eight).

    `times` has the columns `output` (from 0), `adapter` (null: none), `token` (from 1) and `elapsed` (s).
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_WIDTH * 1.35, 2.4))
        axes = figure.subplots()
        for output, rows in times[times["output"] < len(COLOURS)].groupby("output"):
            style: Any = {"color": COLOURS[int(output)], "marker": MARKERS[int(output)], "markersize": 3}
            adapter = rows["adapter"].iloc[0]
            label = f"output {output + 1}" + (f", {adapter}" if pd.notna(adapter) else "")
            axes.plot(rows["token"], 1e3 * rows["elapsed"], label=label, linewidth=1, **style)
        axes.set(xlabel="output token", ylabel="time of this token (ms)", title=title)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.legend()
        return figure
