"""Figures of the quantization study: quality against bytes, decode steps; a mark or a line per arm."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from framework.report.plots import (
    GREY,
    MARKERS,
    TEXT_WIDTH,
    arm_colour,
    errors,
    label_batch_sizes,
    label_log_axis,
    styled,
)


@styled
def quality_bytes(models: pd.DataFrame, title: str) -> Figure:
    """A row per arm: the model's bytes (MB), and what its predictions lose against float32, with 95% intervals.

    An arm that is its own reference has neither disagreement nor divergence, and no mark on their logarithmic axes.
    """
    shown = pd.DataFrame({"arm": models["arm"], "total": 1e-6 * models["total"]})
    for end, other in (("", ""), ("_low", "_high"), ("_high", "_low")):
        shown[f"change{end}"] = 100 * models[f"perplexity_change{end}"]
        shown[f"disagreement{end}"] = 100 * (1 - models[f"top1_agreement{other}"])
        shown[f"kl{end}"] = 1e3 * models[f"kl{end}"]
    panels = {
        "total": "model (MB)",
        "change": "perplexity change (%)",
        "disagreement": "top-1 changed (%)",
        "kl": "KL (1e-3 nats)",
    }
    figure = Figure(figsize=(TEXT_WIDTH, 0.2 * len(shown) + 0.9))
    for axes, (name, label) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        is_log = name in ("disagreement", "kl") and (shown[name] > 0).any()
        for index, row in shown.iterrows():
            if not is_log or row[name] > 0:
                xerr = errors(shown.loc[[index]], name) if f"{name}_low" in shown else None
                colour, marker = arm_colour(index), MARKERS[index % len(MARKERS)]
                axes.errorbar(row[name], index, xerr=xerr, color=colour, marker=marker)
        axes.set_xlabel(label)
        positive = shown[name][shown[name] > 0]
        if is_log and positive.max() > 5 * positive.min():
            axes.set_xscale("log")
            label_log_axis(axes.xaxis)
        else:
            axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
            if is_log:
                axes.set_xlim(left=0)
    figure.axes[0].set_xlim(left=0)
    figure.axes[0].set_yticks(shown.index, shown["arm"])
    figure.axes[0].set_ylim(len(shown) - 0.5, -0.5)
    figure.axes[1].axvline(0, color=GREY, linewidth=0.8, zorder=0)
    figure.suptitle(title, fontsize=8)
    return figure


@styled
def decode_steps(cases: pd.DataFrame, title: str) -> Figure:
    """Time from one decode step to the next (ms) over the batch size, and as a share of the first arm's."""
    first = cases[cases["arm"] == cases["arm"].iloc[0]].set_index("num_seqs")["elapsed"]
    figure = Figure(figsize=(TEXT_WIDTH, 2.6))
    left, right = figure.subplots(1, 2)
    for index, (arm, rows) in enumerate(cases.groupby("arm", sort=False)):
        style = {"color": arm_colour(index), "marker": MARKERS[index % len(MARKERS)], "label": arm}
        times = rows.set_index("num_seqs")["elapsed"].sort_index()
        left.plot(times.index, 1e3 * times, **style)
        right.plot(times.index, first.reindex(times.index) / times, **style)
    for axes in (left, right):
        label_batch_sizes(axes, cases["num_seqs"])
    left.set(ylabel="decode step (ms)", yscale="log")
    label_log_axis(left.yaxis)
    right.set(ylabel=f"times as fast as {cases['arm'].iloc[0]}")
    right.set_ylim(bottom=0)
    figure.suptitle(title, fontsize=8)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure
