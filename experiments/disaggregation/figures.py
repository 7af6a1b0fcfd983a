"""The figure of the study of disaggregation: attainment over the scale of the SLOs."""

import pandas as pd
from matplotlib.figure import Figure

from framework.report.plots import COLUMN_WIDTH, GREY, arm_colour, arm_style, label_log_axis, styled


@styled
def over_scales(shares: pd.DataFrame, tightest: dict[str, float], target: float) -> Figure:
    """Attainment (%) over the SLO scale, a curve per arm; the dashed lines are the target and the scales `tightest`."""
    figure = Figure(figsize=(COLUMN_WIDTH, 2.6))
    axes = figure.subplots()
    for index, (arm, rows) in enumerate(shares.groupby("arm", sort=False)):
        axes.plot(rows["scale"], 100 * rows["attainment"], **arm_style(index), label=arm)
        dashes = (4 * index, (4, 4 * max(1, len(tightest) - 1)))  # equal scales take turns along one line
        axes.axvline(tightest[str(arm)], color=arm_colour(index), linestyle=dashes, linewidth=1)
    axes.axhline(100 * target, color=GREY, linestyle="--", linewidth=1)
    axes.set(xlabel="SLO scale", ylabel="requests within the SLOs (%)", xscale="log")
    axes.set_ylim(0, 105)
    axes.invert_xaxis()
    label_log_axis(axes.xaxis)
    figure.legend(loc="outside upper center", ncols=3)
    return figure
