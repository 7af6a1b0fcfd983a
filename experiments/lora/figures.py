"""Figures of the LoRA studies: decode steps over the batch size, and over an adapter's rank."""

import pandas as pd
from matplotlib.figure import Figure

from framework.report.plots import COLUMN_WIDTH, LINES, TEXT_WIDTH, arm_style, label_batch_sizes, label_log_axis, styled

DECADE = 10


@styled
def steps_by_arm(cases: pd.DataFrame, base: str, title: str) -> Figure:
    """Over the batch size, one line per arm: left, time from one decode step to the next (ms), on logarithmic axes.

    Right, on linear ones, how much of it is more than that of the arm `base`, if there is one. `cases` has the columns
    `arm`, `num_seqs` and `elapsed` (s).
    """
    times = 1e3 * cases.pivot_table(index="num_seqs", columns="arm", values="elapsed", sort=False)
    has_base = base in times
    figure = Figure(figsize=(TEXT_WIDTH if has_base else COLUMN_WIDTH, 2.6))
    panels = figure.subplots(1, 2 if has_base else 1, squeeze=False)[0]
    panels[0].set(ylabel="latency per token (ms)", yscale="log")
    added = [times.drop(columns=base).sub(times[base], axis=0)] if has_base else []
    for axes, table in zip(panels, [times, *added], strict=True):
        for arm in table:
            index = list(times.columns).index(arm)
            axes.plot(table.index, table[arm], label=arm, linestyle=LINES[index % len(LINES)], **arm_style(index))
    label_batch_sizes(panels[0], cases["num_seqs"])
    label_log_axis(panels[0].yaxis)
    if has_base:  # linear both ways: what grows linearly is a straight line
        panels[1].set(xlabel=panels[0].get_xlabel(), ylabel=f"more than {base} (ms)")
        panels[1].set_xlim(left=0)
        panels[1].set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, title=title, title_fontsize=8)
    return figure


@styled
def lora_ranks(table: pd.DataFrame, title: str) -> Figure:
    """Over the rank of an adapter: left, its share of the parameters (%); right, decode steps (ms) with and without it.

    `table` has the columns `rank`, `share`, and `served_elapsed`, `merged_elapsed` and `base_elapsed` (s).
    """
    figure = Figure(figsize=(TEXT_WIDTH, 2.4))
    left, right = figure.subplots(1, 2)
    left.plot(table["rank"], 1e2 * table["share"], **arm_style(0))
    left.set(ylabel="parameters (% of the model)", yscale="log")
    label_log_axis(left.yaxis)
    series = {"served": "beside the weights", "merged": "merged", "base": "no adapter"}
    for index, (name, label) in enumerate(series.items()):
        right.plot(
            table["rank"], 1e3 * table[f"{name}_elapsed"], label=label, **arm_style(index), linestyle=LINES[index]
        )
    right.set(ylabel="decode step (ms)")
    right.set_ylim(bottom=0)
    right.legend()
    for axes in (left, right):
        label_batch_sizes(axes, table["rank"])
        axes.set_xlabel("rank")
    figure.suptitle(title, fontsize=8)
    return figure


@styled
def lines_by_arm(values: pd.DataFrame, x_label: str, labels: dict[str, str], title: str) -> Figure:
    """A panel per metric over x, which is a number or a name: a line per arm, dotted and hollow what a source reports.

    `values` has the columns `arm`, `x`, `metric`, `value` and `is_reported`. Values above 1 that span a decade are on a
    logarithmic axis.
    """
    places = None if pd.api.types.is_numeric_dtype(values["x"]) else list(dict.fromkeys(values["x"]))
    metrics = list(dict.fromkeys(values["metric"]))
    arms = list(dict.fromkeys(values["arm"]))
    figure = Figure(figsize=(TEXT_WIDTH * max(len(metrics), 2) / 3, 2.6))
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        panel = values[values["metric"] == metric]
        for arm, rows in panel.groupby("arm", sort=False):
            index, is_reported = arms.index(arm), rows["is_reported"].iloc[0]
            axes.plot(
                rows["x"] if places is None else [places.index(x) for x in rows["x"]],
                rows["value"],
                label=arm,
                **arm_style(index),
                linestyle=":" if is_reported else "-",
                markerfacecolor="none" if is_reported else None,
            )
        axes.set(xlabel=x_label, ylabel=labels[metric])
        if places is None:
            axes.set_xscale("log")
            label_log_axis(axes.xaxis)
        else:
            axes.set_xticks(range(len(places)), places)
        if panel["value"].max() > DECADE * panel["value"].min() and panel["value"].max() > 1:
            axes.set_yscale("log")
            label_log_axis(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    ncols = 4 if len(metrics) > 2 else 3
    figure.legend(handles=lines.values(), loc="outside upper center", ncols=ncols, title=title, title_fontsize=8)
    return figure
