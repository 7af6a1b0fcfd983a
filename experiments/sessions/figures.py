"""The figure of the study of sessions: time to the first token, and what is computed of a prompt, turn by turn."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from framework.report.plots import (
    GREY,
    LINES,
    TEXT_WIDTH,
    add_wide_legend,
    arm_style,
    errors,
    styled,
)


@styled
def over_turns(turns: pd.DataFrame) -> Figure:
    """TTFT (ms), P50 and P90, and tokens of the prompt that are computed, over the turn, a curve per arm.

    `turns` is what by_turn makes, of one load. The prompt's tokens are those of the first arm.
    """
    figure = Figure(figsize=(TEXT_WIDTH, 2.7))
    latency, tokens = figure.subplots(1, 2)
    for index, (_, rows) in enumerate(turns.groupby("arm", sort=False)):
        for line, metric in zip(LINES, ["ttft_p50", "ttft_p90"], strict=False):
            bars = errors(rows, metric, 1e3) if metric == "ttft_p50" else None
            latency.errorbar(
                rows["turn"], 1e3 * rows[metric], yerr=bars, linestyle=line, elinewidth=0.7, **arm_style(index)
            )
        computed = rows["num_prompt_tokens"] - rows["num_cached_tokens"]
        tokens.plot(rows["turn"], computed, **arm_style(index))
        if index == 0:
            tokens.plot(rows["turn"], rows["num_prompt_tokens"], color=GREY, linestyle=":", zorder=0)
    latency.set(title="time to first token", ylabel="ms")
    tokens.set(title="prompt tokens that are computed", ylabel="tokens")
    for axes in (latency, tokens):
        axes.set(xlabel="turn of the session")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    add_wide_legend(figure, turns["arm"].unique(), {"P50": "-", "P90": LINES[1], "whole prompt": ":"})
    return figure
