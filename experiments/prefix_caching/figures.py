"""The figure of the study of prefix caches: what is found, and the time to the first token, over the cache's size."""

import pandas as pd
from matplotlib.figure import Figure

from framework.report.plots import GREY, LINES, TEXT_WIDTH, add_wide_legend, arm_style, errors, label_log_axis, styled


@styled
def over_sizes(hits: pd.DataFrame) -> Figure:
    """Prompt tokens found (%), and TTFT (ms), over the size of the KV cache (tokens): a curve per order of eviction.

    `hits` is what find_hits makes, of one rate; arms without a prefix cache are lines across.
    """
    figure = Figure(figsize=(TEXT_WIDTH, 2.7))
    shares, latency = figure.subplots(1, 2)
    with_cache = hits[hits["infinite"].notna()]
    for index, (_, rows) in enumerate(with_cache.groupby("base_arm", sort=False)):
        style = arm_style(index)
        shares.plot(rows["num_tokens"], 100 * rows["prefix_hits"], **style)
        shares.plot(rows["num_tokens"], 100 * rows["one_at_a_time"], linestyle=":", linewidth=0.9, color=style["color"])
        for line, metric in zip(LINES, ["ttft_p50", "ttft_p99"], strict=False):
            bars = errors(rows, metric, 1e3) if metric == "ttft_p50" else None
            latency.errorbar(rows["num_tokens"], 1e3 * rows[metric], yerr=bars, linestyle=line, elinewidth=0.7, **style)
    for share in set(with_cache["infinite"]):
        shares.axhline(100 * share, color=GREY, linestyle=LINES[1], linewidth=0.9)
    for _, row in hits[hits["infinite"].isna()].iterrows():
        for line, metric in zip(LINES, ["ttft_p50", "ttft_p99"], strict=False):
            latency.axhline(1e3 * row[metric], color=GREY, linestyle=line, linewidth=0.9)
    shares.set(title="prompt tokens found (%)", ylim=(0, None))
    latency.set(title="time to first token (ms)", yscale="log")
    label_log_axis(latency.yaxis)
    sizes = sorted(set(hits["num_tokens"]))
    for axes in (shares, latency):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("KV cache (tokens)")
    lines = {"left found, right P50": "-", "left infinite cache, right P99": LINES[1], "left one at a time": ":"}
    add_wide_legend(figure, with_cache["base_arm"].unique(), lines)
    return figure
