"""Figures of training: the loss over steps."""

import math

import pandas as pd
from matplotlib.figure import Figure

from framework.report.plots import COLOURS, COLUMN_WIDTH, LINES, styled


@styled
def loss_curve(losses: pd.DataFrame, title: str) -> Figure:
    """Loss on the train and the held-out text over steps: nats per byte on the left axis, bits on the right.

    `losses` has the columns `num_steps`, `train` and `held_out` (nats per byte). A ring is around the kept step.
    """
    shown = losses[losses["num_steps"] > 0]  # at step 0 it is that of guessing
    best = shown.loc[shown["held_out"].idxmin()]
    figure = Figure(figsize=(COLUMN_WIDTH, 2.5))
    axes = figure.subplots()
    for index, (name, label) in enumerate({"train": "train", "held_out": "held out"}.items()):
        axes.plot(shown["num_steps"], shown[name], color=COLOURS[index], linestyle=LINES[index], label=label)
    axes.plot(
        best["num_steps"],
        best["held_out"],
        "o",
        markersize=9,
        markerfacecolor="none",
        markeredgecolor=COLOURS[1],
        label=f"kept: {best['held_out']:.3f}",
    )
    axes.set(xlabel="steps", ylabel="loss (nats/byte)", title=title)
    axes.set_xlim(left=0)
    to_bits = (lambda nats: nats / math.log(2), lambda bits: bits * math.log(2))
    bits = axes.secondary_yaxis("right", functions=to_bits)
    bits.set_ylabel("bits/byte")
    bits.spines["right"].set_visible(True)
    axes.legend()
    return figure
