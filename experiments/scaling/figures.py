"""The figure of the study of scaling: capacity and efficiency over the number of servers."""

import pandas as pd
from matplotlib.figure import Figure

from framework.report.plots import GREY, TEXT_WIDTH, add_wide_legend, arm_style, errors, styled


@styled
def over_servers(rows: pd.DataFrame) -> Figure:
    """Of what `scaling_rows` makes: capacity (1/s) and efficiency (%) over the servers, a curve per router."""
    figure = Figure(figsize=(TEXT_WIDTH, 2.7))
    capacity, efficiency = figure.subplots(1, 2)
    for index, (_, own) in enumerate(rows.groupby("router", sort=False)):
        for axes, name, scale in ((capacity, "capacity", 1.0), (efficiency, "efficiency", 100.0)):
            bars = errors(own, name, scale)
            axes.errorbar(own["servers"], scale * own[name], yerr=bars, elinewidth=0.7, **arm_style(index))
    numbers = sorted(set(rows["servers"]))
    single = rows.loc[rows["servers"] == 1, "capacity"].iloc[0]
    capacity.plot(numbers, [number * single for number in numbers], color=GREY, linestyle=":", zorder=0)
    efficiency.axhline(100, color=GREY, linestyle=":", zorder=0)
    capacity.set(title="capacity (requests/s)")
    efficiency.set(title="efficiency (%)")
    for axes in (capacity, efficiency):
        axes.set_xlabel("servers")
        axes.set_xticks(numbers)
        axes.set_ylim(bottom=0)
    add_wide_legend(figure, rows["router"].unique(), {"N × one server": ":"})
    return figure
