"""The figure of the study of routers: latency, imbalance and what was found over the rate."""

import pandas as pd
from matplotlib.figure import Figure

from framework.report.plots import LINES, TEXT_WIDTH, add_wide_legend, arm_style, label_log_axis, styled


@styled
def over_rates(rows: pd.DataFrame) -> Figure:
    """Of what `router_rows` makes: TTFT (ms), imbalance, and what is found, over the offered rate; a curve per arm."""
    found = next((name for name in FOUND if rows[name].any()), None)
    figure = Figure(figsize=(TEXT_WIDTH, 2.9))
    panels = figure.subplots(1, 2 if found is None else 3)
    for index, (_, own) in enumerate(rows.groupby("arm", sort=False)):
        rates, style = own["offered_rate"], arm_style(index)
        for line, (latency, imbalance) in zip(LINES, CURVES, strict=False):
            panels[0].plot(rates, 1e3 * own[latency], linestyle=line, **style)
            panels[1].plot(rates, own[imbalance], linestyle=line, **style)
        if found is not None:
            panels[2].plot(rates, FOUND[found][1] * own[found], **style)
    panels[0].set(title="time to first token (ms)", yscale="log")
    label_log_axis(panels[0].yaxis)
    panels[1].set(title="imbalance")
    if found is not None:
        panels[2].set(title=FOUND[found][0])
        panels[2].set_ylim(bottom=0)
    for axes in panels:
        axes.set(xlabel="arrival rate (requests/s)")
    add_wide_legend(figure, rows["arm"].unique(), {"P50, load": LINES[0], "P99, busy time": LINES[1]})
    return figure


CURVES = (("ttft_p50", "imbalance_load"), ("ttft_p99", "imbalance_busy"))  # by line style
FOUND = {
    "prefix_hits": ("prompt tokens found (%)", 100),
    "adapter_loads": ("adapter loads per request", 1),
}
