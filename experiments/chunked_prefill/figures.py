"""Figures of the study of chunked prefill: latency and throughput over rates, the cost of chunks, and one stall."""

import pandas as pd
from matplotlib.figure import Figure

from experiments.chunked_prefill.stall import PROMPT
from framework.report.plots import (
    COLOURS,
    COLUMN_WIDTH,
    GREY,
    LINES,
    TEXT_WIDTH,
    add_wide_legend,
    arm_colour,
    arm_style,
    errors,
    label_log_axis,
    styled,
)
from framework.report.rate_plots import label_rates
from framework.report.tables import short

BESIDE = 1.03  # factor from one curve to the next
BAR_WIDTH = 0.4


@styled
def over_rates(summary: pd.DataFrame) -> Figure:
    """TTFT (ms), P99 of the gaps between tokens (ms) and output throughput (tok/s) over the rate, a curve per arm.

    Curves with intervals stand a little beside each other, so that these can be told apart.
    """
    panels = (
        ("time to first token (ms)", ["ttft_p50", "ttft_p99"], 1e3),
        ("gap between tokens, P99 (ms)", ["itl_p99"], 1e3),
        ("output throughput (tokens/s)", ["output_throughput"], 1.0),
    )
    num_arms = summary["arm"].nunique()
    figure = Figure(figsize=(TEXT_WIDTH, 2.7))
    for axes, (title, metrics, scale) in zip(figure.subplots(1, 3), panels, strict=True):
        beside = 1.0 if errors(summary, metrics[0]) is None else BESIDE
        for index, (_, rows) in enumerate(summary.groupby("arm", sort=False)):
            for line, metric in zip(LINES, metrics, strict=False):
                axes.errorbar(
                    rows["offered_rate"] * beside ** (index - (num_arms - 1) / 2),
                    scale * rows[metric],
                    yerr=errors(rows, metric, scale),
                    linestyle=line,
                    elinewidth=0.7,
                    **arm_style(index),
                )
        axes.set(title=title, xlabel="arrival rate (requests/s)", xscale="log")
        label_rates(axes, summary["offered_rate"])
        if metrics[0] == "output_throughput":
            axes.set_ylim(bottom=0)
        else:
            axes.set_yscale("log")
            label_log_axis(axes.yaxis)
    add_wide_legend(figure, summary["arm"].unique(), {"P50": "-", "P99": "--"})
    return figure


@styled
def beside_reported(latencies: pd.DataFrame, first: str) -> Figure:
    """A panel per metric: every arm's latency over that of the arm `first`, measured and (hollow) as reported.

    `latencies` is what latencies_table makes, of one rate; over the bars are the latencies themselves (s).
    """
    metrics = list(latencies["metric"].unique())
    figure = Figure(figsize=(TEXT_WIDTH, 2.4))
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        rows = latencies[latencies["metric"] == metric]
        for index, whose in enumerate(("measured", "reported")):
            style = {"facecolor": COLOURS[0]} if index == 0 else {"facecolor": "none", "linestyle": ":"}
            places = [place + (index - 0.5) * BAR_WIDTH for place in range(len(rows))]
            ratios = rows[f"{whose} ÷ {first}"]
            bars = axes.bar(places, ratios, width=0.9 * BAR_WIDTH, edgecolor=COLOURS[0], label=whose, **style)
            axes.bar_label(bars, [f"{short(value)} s" for value in rows[whose]], fontsize=6, padding=1)
        axes.set_xticks(range(len(rows)), rows["arm"])
        axes.set(title=metric, ylabel=f"÷ {first}")
        axes.margins(y=0.12)
        axes.grid(axis="x", visible=False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@styled
def chunk_overhead(measured: pd.DataFrame, reported: pd.DataFrame, title: str) -> Figure:
    """Time of a prompt in chunks over that in one step, over its length: a line per chunk size, dotted as reported.

    Both tables have the columns `num_prompt_tokens`, `num_chunk_tokens` and `ratio`.
    """
    figure = Figure(figsize=(COLUMN_WIDTH, 2.8))
    axes = figure.subplots()
    chunk_sizes = sorted({*measured["num_chunk_tokens"], *reported["num_chunk_tokens"]})
    for table, label, line in ((measured, "chunks of {}", "-"), (reported, "{}, reported", ":")):
        for chunk_size, rows in table.groupby("num_chunk_tokens"):
            rows = rows.sort_values("num_prompt_tokens")
            axes.plot(
                rows["num_prompt_tokens"],
                rows["ratio"],
                label=label.format(f"{chunk_size:.0f}"),
                linestyle=line,
                markerfacecolor="none" if line == ":" else None,
                **arm_style(chunk_sizes.index(chunk_size)),
            )
    axes.axhline(1, color=GREY, linestyle=LINES[1], linewidth=0.8)
    lengths = sorted({*measured["num_prompt_tokens"], *reported["num_prompt_tokens"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set(xlabel="prompt (tokens)", ylabel="time ÷ that of one step")
    figure.legend(loc="outside upper center", ncols=2, title=title, title_fontsize=8)
    return figure


@styled
def stall_timeline(tokens: pd.DataFrame, title: str) -> Figure:
    """Gaps between the tokens of the sequences that decode (ms) over time (ms) since a long prompt arrived.

    A panel per arm; the prompt is computed in the grey span. `tokens` is what measure_stall makes, of one repeat.
    """
    arms = list(tokens["arm"].unique())
    figure = Figure(figsize=(TEXT_WIDTH, 0.6 + 0.95 * len(arms)))
    panels = figure.subplots(len(arms), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for index, (axes, arm) in enumerate(zip(panels, arms, strict=True)):
        rows = tokens[tokens["arm"] == arm]
        is_prompt = rows["sequence"] == PROMPT
        decodes = rows[~is_prompt & rows["gap"].notna()]
        axes.axvspan(0, 1e3 * rows.loc[is_prompt, "time"].min(), color="#eeeeee", linewidth=0)
        axes.vlines(1e3 * decodes["time"], 0, 1e3 * decodes["gap"], color=arm_colour(index), linewidth=0.8)
        axes.plot(1e3 * decodes["time"], 1e3 * decodes["gap"], ".", color=arm_colour(index), markersize=3)
        axes.set_title(arm, loc="left")
        axes.grid(axis="x", visible=False)
    panels[0].set_ylim(bottom=0)
    figure.supylabel("gap before a token (ms)", fontsize=8)
    panels[-1].set_xlabel("time since the prompt arrived (ms)")
    figure.suptitle(title, fontsize=8)
    return figure
