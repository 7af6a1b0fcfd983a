"""Figures of the speed studies: roofline, decode steps, mixed steps, and what each of an engine's options buys."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from framework.measure.ceilings import Ceilings, limits, ridge
from framework.report.plots import (
    COLOURS,
    COLUMN_WIDTH,
    GREY,
    LINES,
    TEXT_WIDTH,
    arm_style,
    label_batch_sizes,
    label_log_axis,
    styled,
)


@styled
def roofline(cases: pd.DataFrame, ceilings: Ceilings, title: str) -> Figure:
    """TFLOP/s over FLOP/byte, one marker per case, under the measured ceilings (Williams et al., CACM 2009)."""
    intensity = cases["num_flops"] / cases["num_bytes"]
    figure = Figure(figsize=(COLUMN_WIDTH, 3.3))
    axes = figure.subplots()
    reach = np.geomspace(min(intensity.min(), 1.0) / 2, 4 * max(intensity.max(), ridge(ceilings)), 200)
    roof = np.minimum(reach * ceilings.read_bandwidth, ceilings.matmul_rate)
    axes.plot(reach, 1e-12 * roof, color=GREY, label=limits(ceilings))
    for index, (case, row) in enumerate(cases.set_index("case").iterrows()):
        axes.plot(
            row["num_flops"] / row["num_bytes"],
            1e-12 * row["num_flops"] / row["device"],
            linestyle="none",
            **arm_style(index),
            label=case,
        )
    axes.set(xscale="log", yscale="log", xlabel="intensity (FLOP/byte)", ylabel="TFLOP/s", title=title)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def decode_step(cases: pd.DataFrame, title: str) -> Figure:
    """Floor, device time and time from step to step (ms) of the decode cases over the batch size."""
    rows = cases[cases["kind"] == "decode"].sort_values("num_seqs")
    series = {"elapsed": "from step to step", "device": "on the device", "floor": "floor"}
    figure = Figure(figsize=(COLUMN_WIDTH, 2.4))
    axes = figure.subplots()
    for index, (name, label) in enumerate(series.items()):
        axes.plot(rows["num_seqs"], 1e3 * rows[name], label=label, **arm_style(index), linestyle=LINES[index])
    label_batch_sizes(axes, rows["num_seqs"])
    axes.set(ylabel="decode step (ms)", title=title)
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


@styled
def against_alone(comparisons: pd.DataFrame, title: str) -> Figure:
    """A bar per row of `comparisons`: its `ratio` to the step alone, with both times (ms), and a line at 1."""
    figure = Figure(figsize=(TEXT_WIDTH, 0.8 + 0.3 * len(comparisons)))
    axes = figure.subplots()
    places = range(len(comparisons))
    bars = axes.barh(
        places, comparisons["ratio"], height=0.6, color=[COLOURS[kind != "mixed"] for kind in comparisons["kind"]]
    )
    labels = [
        f"{row['ratio']:.2f}×  ({1e3 * row['device']:.3g} ÷ {1e3 * row['alone_device']:.3g} ms)"
        for row in comparisons.to_dict("records")
    ]
    axes.bar_label(bars, labels, padding=3, fontsize=7)
    axes.axvline(1, color=GREY, linestyle=LINES[1], linewidth=0.8)
    axes.set_yticks(places, comparisons["case"])
    axes.set(xlabel="time on the device ÷ that of the step alone", title=title)
    axes.set_xlim(0, 1.35 * max(1.0, comparisons["ratio"].max()))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    return figure


@styled
def ablation(decode: pd.DataFrame, throughput: pd.Series, title: str) -> Figure:
    """Left, time from step to step (ms) per arm, one line per batch size; right, output tokens/s of the queue.

    `decode` has the columns `arm`, `num_seqs` and `elapsed` (s); `throughput` is indexed by arm.
    """
    arms = list(throughput.index)
    figure = Figure(figsize=(TEXT_WIDTH, 2.6))
    left, right = figure.subplots(1, 2)
    for index, (batch_size, rows) in enumerate(decode.groupby("num_seqs")):
        times = rows.set_index("arm")["elapsed"].reindex(arms)
        left.plot(range(len(arms)), 1e3 * times, label=f"batch {batch_size}", **arm_style(index))
    left.set(ylabel="decode step (ms)", yscale="log")
    label_log_axis(left.yaxis)
    left.legend()
    bars = right.bar(range(len(arms)), throughput, color=COLOURS[0])
    right.bar_label(bars, [f"{value:,.0f}" for value in throughput], fontsize=7)
    right.set(ylabel="output tokens/s")
    for axes in (left, right):
        axes.set_xticks(range(len(arms)), arms)
        axes.grid(axis="x", visible=False)
    figure.suptitle(title, fontsize=8)
    return figure
