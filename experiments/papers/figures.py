"""Figures of the papers' studies: latency over the rate with a limit, and all papers' ratios beside the reported."""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.papers.comparison import Value
from framework.report.plots import COLUMN_WIDTH, GREY, LINES, TEXT_WIDTH, arm_colour, arm_style, label_log_axis, styled

BAND = 0.15  # how far from the paper's a ratio may be


@styled
def latency_over_rate(rows: pd.DataFrame, metric: str, label: str, limit: float, capacity: float, base: str) -> Figure:
    """A latency (ms) over the offered rate (requests/s), a line per arm; dashed: the `limit` (s).

    The upper axis is the rate in multiples of `capacity` (requests/s), what the arm `base` serves at most. `rows` has
    the columns `arm`, `offered_rate` and `metric` (s), means over seeds.
    """
    figure = Figure(figsize=(COLUMN_WIDTH, 2.9))
    axes = figure.subplots()
    for index, (arm, line) in enumerate(rows.groupby("arm", sort=False)):
        axes.plot(line["offered_rate"], 1e3 * line[metric], label=arm, **arm_style(index))
    axes.axhline(1e3 * limit, color=GREY, linestyle=LINES[1], linewidth=0.9)
    axes.set(xlabel="arrival rate (requests/s)", ylabel=label, yscale="log")
    axes.set_xlim(left=0)
    label_log_axis(axes.yaxis)
    scales: Any = (lambda rate: rate / capacity, lambda multiple: multiple * capacity)
    upper = axes.secondary_xaxis("top", functions=scales)
    upper.set_xlabel(f"× what {base} serves at most")
    figure.legend(loc="outside upper center", ncols=4)
    return figure


@styled
def bars_by_case(values: pd.DataFrame, x_label: str, y_label: str) -> Figure:
    """Groups of bars: a group per row of `values`, a bar per column, which are arms."""
    figure = Figure(figsize=(COLUMN_WIDTH, 2.5))
    axes = figure.subplots()
    width = 0.8 / len(values.columns)
    for index, arm in enumerate(values.columns):
        places = [place + width * (index - (len(values.columns) - 1) / 2) for place in range(len(values))]
        axes.bar(places, values[arm], width=0.9 * width, color=arm_colour(index), label=arm)
    axes.set_xticks(range(len(values)), values.index)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper center", ncols=4)
    return figure


@styled
def differences_over_time(lines: pd.DataFrame, beside: pd.DataFrame) -> Figure:
    """Difference of two clients' services in bounds, over the arrivals' time, a line per arm; hollow: `beside`.

    `lines` has the columns `arm`, `seed`, `time` (0 to 1), `difference` and `bound`, `beside` has `arm`, `time` and
    `value`. Lines are means over the seeds.
    """
    figure = Figure(figsize=(COLUMN_WIDTH, 2.6))
    axes = figure.subplots()
    shares = lines.assign(value=lines["difference"] / lines["bound"])
    for index, (arm, own) in enumerate(shares.groupby("arm", sort=False)):
        means = own.groupby("time")["value"].mean()
        axes.plot(means.index, means, color=arm_colour(index), label=arm)
        marks = beside[beside["arm"] == arm]
        axes.plot(marks["time"], marks["value"], "o", color=arm_colour(index), markerfacecolor="none")
    axes.axhline(1.0, color=GREY, linestyle=LINES[1], linewidth=0.9)
    axes.set(xlabel="time (share of the time in which requests come)", ylabel="difference of service ÷ bound")
    axes.set_xlim(0, 1.03)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=4)
    return figure


@styled
def answers_over_time(lines: pd.DataFrame, share: float) -> Figure:
    """Share of the answers that have ended, over time (s, logarithmic), a panel per workload and a line per arm.

    `lines` has the columns `workload`, `arm` and `time`, a row per answer in the order of their ends. Dotted: `share`.
    """
    names = list(lines["workload"].unique())
    arms = list(lines["arm"].unique())
    figure = Figure(figsize=(COLUMN_WIDTH, 2.4))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for arm, own in lines[lines["workload"] == name].groupby("arm", sort=False):
            shares = [(number + 1) / len(own) for number in range(len(own))]
            axes.step(own["time"], shares, where="post", color=arm_colour(arms.index(arm)), label=arm)
        axes.axhline(share, color=GREY, linestyle=":", linewidth=0.9)
        axes.set(title=name, xlabel="time (s)", xscale="log")
        label_log_axis(axes.xaxis)
    panels[0].set(ylabel="share of answers")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


@styled
def bars_beside(rows: pd.DataFrame) -> Figure:
    """Executed and modelled (ms) in pairs per workload, a row of panels per load, a column per quantile.

    `rows` has the columns `workload`, `load`, `quantile`, `reference` and `value` (s), `error` and `spread` (%).
    """
    loads, quantiles = rows["load"].drop_duplicates(), rows["quantile"].drop_duplicates()
    figure = Figure(figsize=(TEXT_WIDTH, 1.9 * max(len(loads), 1) + 0.5))
    panels = figure.subplots(max(len(loads), 1), max(len(quantiles), 1), squeeze=False)
    for line, load in zip(panels, loads, strict=False):
        for axes, quantile in zip(line, quantiles, strict=True):
            own = rows[(rows["load"] == load) & (rows["quantile"] == quantile)]
            places = np.arange(len(own))
            whole = 1e3 * own[["reference", "value"]].to_numpy()
            ends = own["spread"].fillna(0.0).to_numpy() / 100 * whole[:, 0]
            axes.bar(places - 0.2, whole[:, 0], 0.36, color=arm_colour(0), label="executed", yerr=ends, capsize=2)
            axes.bar(places + 0.2, whole[:, 1], 0.36, color=arm_colour(1), label="modelled")
            for place, pair, end, error in zip(places, whole, ends, own["error"], strict=True):
                axes.text(place, max(pair[0] + end, pair[1]), f"{error:+.1f}%", ha="center", va="bottom", fontsize=7)
            axes.set_xticks(places, own["workload"])
            axes.set_title(f"{quantile} at {load:.0%} of the capacity")
            axes.margins(y=0.18)
            axes.set_ylim(bottom=0)
            axes.grid(axis="x", visible=False)
        line[0].set_ylabel("normalized latency\n(ms per token)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@styled
def ratios_of_all(every: pd.DataFrame) -> Figure:
    """Measured ratios over reported ones, on logarithmic axes, a colour per paper; hollow: not the same quantity.

    `every` has the columns of a comparison and `paper`. Ranges and what is not measured have no point.
    """
    figure = Figure(figsize=(COLUMN_WIDTH, 3.6))
    axes = figure.subplots()
    numbers = every.assign(
        x=pd.to_numeric(every["reported ratio"], errors="coerce"),
        y=pd.to_numeric(every["measured ratio"], errors="coerce"),
    )
    shown = numbers[(numbers["x"] > 0) & (numbers["y"] > 0)]
    for index, (paper, rows) in enumerate(shown.groupby("paper", sort=False)):
        axes.plot([], [], "o", color=arm_colour(index), label=str(paper).partition(",")[0])
        for is_same, points in rows.groupby(rows["same quantity"] == "yes"):
            filling: dict[str, Any] = {} if is_same else {"markerfacecolor": "none"}
            axes.plot(points["x"], points["y"], "o", color=arm_colour(index), **filling)
    values = pd.concat([shown["x"], shown["y"]])
    ends = [0.7 * values.min(), 1.4 * values.max()] if len(values) else [0.5, 2.0]
    axes.fill_between(ends, [(1 - BAND) * end for end in ends], [(1 + BAND) * end for end in ends], color="#eeeeee")
    axes.plot(ends, ends, color=GREY, linewidth=0.9)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="reported ratio", ylabel="measured ratio")
    for axis in (axes.xaxis, axes.yaxis):
        label_log_axis(axis)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def attainment_over_load(curves: pd.DataFrame, reported: pd.DataFrame, names: dict[str, str], target: float) -> Figure:
    """Attainment (%) over the load, a line per arm, and hollow what a paper reports of it; dashed: the target.

    Both tables have the columns `arm`, `load` and `attainment`; `names` has the paper's name of each arm.
    """
    figure = Figure(figsize=(COLUMN_WIDTH, 2.6))
    axes = figure.subplots()
    for index, (name, arm) in enumerate(names.items()):
        ours, theirs = curves[curves["arm"] == arm], reported[reported["arm"] == arm]
        axes.plot(ours["load"], 100 * ours["attainment"], **arm_style(index), label=arm)
        style = arm_style(index) | {"linestyle": LINES[3], "markerfacecolor": "none"}
        axes.plot(theirs["load"], 100 * theirs["attainment"], **style, label=name)
    axes.axhline(100 * target, color=GREY, linestyle=LINES[1], linewidth=0.9)
    axes.set(xlabel="rate (× the highest that colocated servers keep)", ylabel="requests within the SLOs (%)")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 105)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def capacity_over_limits(rows: pd.DataFrame, reported: Mapping[str, Value]) -> Figure:
    """Two panels over the limit: capacities (requests/s) with intervals, a line per arm, and the reported ones.

    `rows` is what `find_capacities` makes; `reported` has cases such as `vllm, 5×`.
    """
    figure = Figure(figsize=(TEXT_WIDTH, 2.6))
    axes, theirs = figure.subplots(1, 2)
    for index, (arm, line) in enumerate(rows.groupby("arm", sort=False)):
        style = arm_style(index)
        axes.plot(line["limit"], line["capacity"], label=arm, **style)
        bounded = line[line[["low", "high"]].map(isfinite).all(axis=1)]
        lows = bounded["low"].clip(lower=0)
        axes.vlines(bounded["limit"], lows, bounded["high"], color=style["color"], linewidth=0.7)
        values = sorted(values_of(str(arm), reported))
        places = [limit for limit, _ in values], [value for _, value in values]
        theirs.plot(*places, **style | {"linestyle": ":", "markerfacecolor": "none"})
    for panel, title in ((axes, "measured"), (theirs, "reported")):
        panel.set(xlabel="limit on the P99 gap (× a decode step)", ylabel="capacity (requests/s)", title=title)
        panel.set_ylim(bottom=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def values_of(arm: str, reported: Mapping[str, Value]) -> Iterable[tuple[float, float]]:
    """(limit, value) of the arm's cases."""
    for case, value in reported.items():
        name, _, limit = case.rpartition(", ")
        if name == arm and not isinstance(value, list):
            yield float(limit.removesuffix("×")), value


@styled
def slowdowns_over_rate(rows: pd.DataFrame, limits: Mapping[str, Sequence[float]]) -> Figure:
    """Nine panels over the offered rate: a row per latency, a column per percentile, a curve per arm; dashed: limits.

    `rows` is what `slowdown_rows` makes; `limits` has three for each latency. Curves leave a panel at twice its limit.
    """
    shares = rows["share"].drop_duplicates()
    figure = Figure(figsize=(TEXT_WIDTH, 1.35 * len(limits) + 0.5))
    panels = figure.subplots(len(limits), len(shares), sharex=True, squeeze=False)
    for line, (latency, own) in zip(panels, limits.items(), strict=True):
        for axes, share, limit in zip(line, shares, own, strict=True):
            at = rows[(rows["latency"] == latency) & (rows["share"] == share)]
            for index, (arm, curve) in enumerate(at.groupby("arm", sort=False)):
                axes.plot(curve["offered_rate"], curve["slowdown"], label=arm, **arm_style(index))
            axes.axhline(limit, color=GREY, linestyle=LINES[1], linewidth=0.9)
            axes.set_ylim(0, 2 * limit)
            axes.set_title(f"{latency.upper()} P{100 * share:g}")
        line[0].set_ylabel("slowdown")
    for axes in panels[-1]:
        axes.set_xlabel("arrival rate (requests/s)")
        axes.set_xlim(left=0)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure


@styled
def metrics_over_rate(rows: pd.DataFrame, labels: Mapping[str, str], capacity: float, base: str) -> Figure:
    """A panel per column of `labels` over the rate, in multiples of `capacity`, what `base` serves; a curve per arm.

    `rows` has the columns `arm`, `rate` (requests/s) and those of `labels`. Axes are logarithmic where all is positive.
    """
    figure = Figure(figsize=(TEXT_WIDTH, 2.5))
    panels = figure.subplots(1, len(labels), squeeze=False)[0]
    for axes, (column, label) in zip(panels, labels.items(), strict=True):
        for index, (arm, line) in enumerate(rows.groupby("arm", sort=False)):
            axes.plot(line["rate"] / capacity, line[column], label=arm, **arm_style(index))
        axes.set(xlabel=f"rate (× what {base} serves)", title=label)
        if (rows[column] > 0).all():
            axes.set_yscale("log")
            label_log_axis(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure
