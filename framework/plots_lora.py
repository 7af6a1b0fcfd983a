"""Figures of the LoRA studies: decode steps over the batch size, and over an adapter's rank."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from framework.plots import COLOURS, COLUMN_WIDTH, LINES, MARKERS, STYLE, TEXT_WIDTH, label_batch_sizes, label_log_axis


def steps_by_arm(cases: pd.DataFrame, title: str) -> Figure:
    """Time from one decode step to the next (ms) over the batch size, one line per arm; both axes logarithmic.

    `cases` has the columns `arm`, `num_seqs` and `elapsed` (s).
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_WIDTH, 2.6))
        axes = figure.subplots()
        for index, (arm, rows) in enumerate(cases.groupby("arm", sort=False)):
            axes.plot(
                rows["num_seqs"], 1e3 * rows["elapsed"], label=arm, linestyle=LINES[index % len(LINES)],
                color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)],
            )  # fmt: skip
        label_batch_sizes(axes, cases["num_seqs"])
        axes.set(ylabel="latency per token (ms)", yscale="log", title=title)
        label_log_axis(axes.yaxis)
        axes.legend()
        return figure


def lora_ranks(table: pd.DataFrame, title: str) -> Figure:
    """Over the rank of an adapter: left, its share of the parameters (%); right, decode steps (ms) with and without it.

    `table` has the columns `rank`, `share`, and `served_elapsed`, `merged_elapsed` and `base_elapsed` (s).
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(TEXT_WIDTH, 2.4))
        left, right = figure.subplots(1, 2)
        left.plot(table["rank"], 1e2 * table["share"], color=COLOURS[0], marker=MARKERS[0])
        left.set(ylabel="parameters (% of the model)", yscale="log")
        label_log_axis(left.yaxis)
        series = {"served": "beside the weights", "merged": "merged", "base": "no adapter"}
        for index, (name, label) in enumerate(series.items()):
            right.plot(
                table["rank"], 1e3 * table[f"{name}_elapsed"], label=label,
                color=COLOURS[index], marker=MARKERS[index], linestyle=LINES[index],
            )  # fmt: skip
        right.set(ylabel="decode step (ms)")
        right.set_ylim(bottom=0)
        right.legend()
        for axes in (left, right):
            label_batch_sizes(axes, table["rank"])
            axes.set_xlabel("rank")
        figure.suptitle(title, fontsize=8)
        return figure
