"""Figures of the quantization study: quality against bytes, decode steps, SLO attainment; a mark or a line per arm."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from framework.plots import (
    COLOURS,
    COLUMN_WIDTH,
    LINES,
    MARKERS,
    STYLE,
    TEXT_WIDTH,
    errors,
    label_batch_sizes,
    label_log_axis,
    label_rates,
)


def quality_bytes(models: pd.DataFrame, title: str) -> Figure:
    """Change of perplexity, top-1 disagreement and KL from float32 against the model's bytes (MB), with 95% intervals.

    An arm that is its own reference has neither disagreement nor divergence, and no mark on their logarithmic axes.
    """
    shown = models[["arm", "total", "kl", "kl_low", "kl_high"]].copy()
    for end, other in (("", ""), ("_low", "_high"), ("_high", "_low")):
        shown[f"change{end}"] = 100 * (models[f"perplexity_ratio{end}"] - 1)
        shown[f"disagreement{end}"] = 100 * (1 - models[f"top1_agreement{other}"])
    panels = {
        "change": "change of perplexity (%)",
        "disagreement": "tokens with another top-1 (%)",
        "kl": "KL from float32 (nats/token)",
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(TEXT_WIDTH, 2.6))
        for axes, (name, label) in zip(figure.subplots(1, 3), panels.items(), strict=True):
            is_log = name != "change" and (shown[name] > 0).any()
            for index, (arm, row) in enumerate(shown.groupby("arm", sort=False)):
                if not is_log or row[name].item() > 0:
                    axes.errorbar(
                        1e-6 * row["total"], row[name], yerr=errors(row, name), linestyle="none", label=arm,
                        color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)],
                    )  # fmt: skip
            axes.set(xlabel="model (MB)", ylabel=label, xlim=(0, 1.05e-6 * shown["total"].max()))
            if is_log:
                axes.set_yscale("log")
        figure.suptitle(title, fontsize=8)
        add_arms(figure)
        return figure


def add_arms(figure: Figure) -> None:
    """A legend of the first panel's arms below all panels."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def decode_steps(cases: pd.DataFrame, title: str) -> Figure:
    """Time from one decode step to the next (ms) over the batch size, and as a share of the first arm's."""
    first = cases[cases["arm"] == cases["arm"].iloc[0]].set_index("num_seqs")["elapsed"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(TEXT_WIDTH, 2.6))
        left, right = figure.subplots(1, 2)
        for index, (arm, rows) in enumerate(cases.groupby("arm", sort=False)):
            style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "label": arm}
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
        add_arms(figure)
        return figure


def attainment_rate(summary: pd.DataFrame, capacities: dict[str, float], target: float) -> Figure:
    """Share of requests within every SLO over the arrival rate; the dashed lines are the target and the capacities."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_WIDTH, 2.4))
        axes = figure.subplots()
        for index, (arm, rows) in enumerate(summary.groupby("arm", sort=False)):
            colour = COLOURS[index % len(COLOURS)]
            axes.errorbar(
                rows["rate"], 100 * rows["slo_attainment"], yerr=errors(rows, "slo_attainment", 100), color=colour,
                marker=MARKERS[index % len(MARKERS)], label=arm,
            )  # fmt: skip
            axes.axvline(capacities[str(arm)], color=colour, linestyle=LINES[1], linewidth=0.8)
        axes.axhline(100 * target, color="#555555", linestyle=LINES[1], linewidth=0.8)
        axes.set(xlabel="arrival rate (requests/s)", ylabel="requests within the SLOs (%)", xscale="log", ylim=(0, 103))
        label_rates(axes, summary["rate"])
        axes.legend()
        return figure
