"""Figures of the study that puts everything together: streams, what each technique contributes, all combinations."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from framework.report.plots import COLOURS, GREY, TEXT_WIDTH, arm_style, errors, label_log_axis, styled

BETTER, WORSE, WHOLE = COLOURS[2], COLOURS[1], COLOURS[0]
FACTORS = {"alone": "alone", "in_turn": "in turn", "last": "last"}


@styled
def stream_times(tokens: pd.DataFrame, title: str) -> Figure:
    """Left, time per token (ms) of the stream alone; right, every token of all streams over time (s), a line each.

    `tokens` has the columns `order` (`alone` and others), `num_adapters`, `repeat`, `stream`, `token` and `time` (s),
    of which medians over the repeats are shown; right are the runs with the most adapters.
    """
    keys = ["order", "num_adapters", "stream"]
    elapsed = tokens.groupby([*keys, "repeat"], sort=False)["time"].diff().fillna(tokens["time"])
    medians = tokens.assign(elapsed=elapsed).groupby([*keys, "token"], sort=False)[["time", "elapsed"]].median()
    times = medians.reset_index()
    figure = Figure(figsize=(TEXT_WIDTH, 2.4))
    left, right = figure.subplots(1, 2)
    alone = times[times["order"] == "alone"]
    left.plot(alone["token"], 1e3 * alone["elapsed"], color=COLOURS[0], linewidth=1)
    left.set(xlabel="output token", ylabel="time of this token (ms)", title="one stream alone")
    left.set_ylim(bottom=0)
    shown = times[(times["order"] != "alone") & (times["num_adapters"] == times["num_adapters"].max())]
    labels = []
    for lane, ((order, stream), rows) in enumerate(shown.groupby(["order", "stream"], sort=False)):
        right.eventplot(
            rows["time"], lineoffsets=lane, linelengths=0.7, linewidths=0.8, color=COLOURS[int(stream) % len(COLOURS)]
        )
        labels.append(f"{order}, {len(rows)}")
    right.set_yticks(range(len(labels)), labels)
    right.set(xlabel="time (s)", title="tokens of every stream", xlim=(0, None))
    right.invert_yaxis()
    right.grid(axis="y", visible=False)
    figure.suptitle(title, fontsize=8)
    return figure


@styled
def contribution_bars(techniques: pd.DataFrame, ceiling: float, label: str) -> Figure:
    """Left, the throughput (tok/s) technique by technique, dashed the `ceiling`; right, the factors of each.

    `techniques` has the columns `technique`, `before`, `output` (tok/s), `alone`, `in_turn` and `last`, these three
    with their intervals; `label` is of the last bar.
    """
    figure = Figure(figsize=(TEXT_WIDTH, 2.8))
    left, right = figure.subplots(1, 2)
    waterfall(left, techniques, label)
    left.axhline(ceiling, color=GREY, linestyle="--", linewidth=1, label=f"{label}, without adapters")
    left.set_ylim(top=1.25 * max(ceiling, techniques["output"].max(), techniques["before"].max()))
    left.legend(loc="upper left")
    width = 0.8 / len(FACTORS)
    for offset, (name, text) in enumerate(FACTORS.items()):
        x = [index + (offset - 1) * width for index in range(len(techniques))]
        bars = right.bar(
            x,
            techniques[name] - 1,
            width,
            bottom=1,
            yerr=errors(techniques, name),
            color=COLOURS[offset],
            label=text,
            error_kw={"elinewidth": 0.7},
        )
        right.bar_label(bars, [f"{value:.2f}" for value in techniques[name]], fontsize=6)
    right.axhline(1.0, color=GREY, linewidth=0.8)
    right.set_xticks(range(len(techniques)), techniques["technique"])
    right.set(ylabel="times the output without it", yscale="log")  # twice is as far from 1 as half
    label_log_axis(right.yaxis)
    right.margins(y=0.12)
    right.legend()
    return figure


def waterfall(axes: Axes, techniques: pd.DataFrame, label: str) -> None:
    """The first bar's whole, every technique's step up or down, the last bar's whole."""
    first, last = techniques["before"].iloc[0], techniques["output"].iloc[-1]
    labels = ["naive", *techniques["technique"], label]
    axes.bar([0, len(labels) - 1], [first, last], color=WHOLE)
    for index, row in enumerate(techniques.to_dict("records"), start=1):
        colour = BETTER if row["output"] >= row["before"] else WORSE
        axes.bar(index, row["output"] - row["before"], bottom=row["before"], color=colour)
        axes.plot([index - 1.4, index + 0.4], [row["before"]] * 2, color=GREY, linewidth=0.6)
    heights = [first, *techniques[["before", "output"]].max(axis=1), last]
    totals = [first, *techniques["output"], last]
    for index, (height, total) in enumerate(zip(heights, totals, strict=True)):
        axes.annotate(f"{total:,.0f}", (index, height), (0, 2), textcoords="offset points", ha="center", fontsize=6)
    axes.set_xticks(range(len(labels)), [text.replace(" → ", " →\n") for text in labels])
    axes.set(ylabel="most output (tokens/s)")


@styled
def combination_curves(summary: pd.DataFrame) -> Figure:
    """Normalized latency (ms/token) over output throughput (tok/s), one curve per last option of the arms' names.

    Arms are called `a+b+c`: a panel for each a+b, a colour for each c.
    """
    names = summary["arm"].str.rpartition("+")
    panels, options = list(names[0].unique()), list(names[2].unique())
    num_columns = 2 if len(panels) > 1 else 1
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(TEXT_WIDTH, 2.0 * num_rows + 0.4))
    grid = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False).flat
    for axes, panel in zip(grid, panels, strict=False):
        for index, option in enumerate(options):
            rows = summary[(names[0] == panel) & (names[2] == option)]
            axes.plot(
                rows["output_throughput"], 1e3 * rows["normalized_latency_mean"], label=option, **arm_style(index)
            )
        axes.set(title=panel.replace("+", ", "), yscale="log")
        label_log_axis(axes.yaxis)
    figure.axes[0].set_xlim(0, 1.05 * summary["output_throughput"].max())  # shared by all
    figure.supxlabel("output throughput (tokens/s)", fontsize=8)
    figure.supylabel("mean latency (ms/output token)", fontsize=8)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(options))
    return figure
