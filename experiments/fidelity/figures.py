"""Figures of the fidelity study: the error over the load, distributions of both sides, and request by request."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.fidelity.cells import Plan
from experiments.fidelity.errors import PER_REQUEST, mean_latencies
from framework.report.plots import GREY, LINES, MARKERS, TEXT_WIDTH, Drawn, arm_colour, label_log_axis, styled
from framework.study.sweep import Study

OVER_LOAD = {"output_throughput": "throughput", "ttft_p50": "TTFT P50", "tpot_p50": "TPOT P50", "ttft_p99": "TTFT P99"}
TITLES = {"ttft": "time to first token", "tpot": "time per output token", "e2e": "end to end"}
CAPTIONS = {
    "error_over_load": "Error of each side over the load, one row per cell. Shaded: the 95% interval of the repeats.",
    "distributions": "Share of the requests over each latency, at the highest load: every repeat of every side.",
    "request_by_request": "Each request's latency by the other sides over that by the reference, at the highest load. "
    "Dashed: equal.",
}
Tables = dict[tuple[str, str], list[pd.DataFrame]]  # requests of the repeats, by cell and side


def figures_of(study: Study, placed: pd.DataFrame, errors: pd.DataFrame, plan: Plan) -> dict[str, Drawn]:
    if errors.empty:
        return {}
    highest = placed[placed["load"] == placed.groupby("cell")["load"].transform("max")]
    tables: Tables = {
        (str(cell), str(side)): [pd.read_parquet(study.folder(point) / "requests.parquet") for point in rows["point"]]
        for (cell, side), rows in highest.groupby(["cell", "side"], sort=False)
    }
    figures = {
        "error_over_load": error_over_load(errors, plan.others),
        "distributions": distributions(tables, plan.sides),
        "request_by_request": request_by_request(tables, plan),
    }
    return {name: (figure, CAPTIONS[name]) for name, figure in figures.items()}


def panels(cells: list[str], num_columns: int) -> tuple[Figure, np.ndarray]:
    """A row per cell, (cells, columns)."""
    figure = Figure(figsize=(TEXT_WIDTH, 1.5 * len(cells) + 0.6))
    return figure, figure.subplots(len(cells), num_columns, squeeze=False)


@styled
def error_over_load(errors: pd.DataFrame, sides: list[str]) -> Figure:
    """Percent over the load (%)."""
    cells = [str(cell) for cell in errors["cell"].drop_duplicates()]
    figure, axes_of = panels(cells, len(OVER_LOAD))
    for row, cell in enumerate(cells):
        for column, (metric, title) in enumerate(OVER_LOAD.items()):
            axes: Axes = axes_of[row, column]
            for index, side in enumerate(sides):
                rows = errors[(errors["cell"] == cell) & (errors["side"] == side) & (errors["metric"] == metric)]
                x, spread = 100 * rows["load"], rows["spread"].fillna(0.0)
                axes.plot(x, rows["error"], marker=MARKERS[index % len(MARKERS)], color=arm_colour(index), label=side)
                axes.fill_between(x, -spread, spread, color=arm_colour(index), alpha=0.15, linewidth=0)
            axes.axhline(0, color=GREY, linewidth=0.8)
            if row == 0:
                axes.set_title(title)
        axes_of[row, 0].set_ylabel(f"{cell}\nerror (%)")
    for axes in axes_of[-1]:
        axes.set_xlabel("load (% of capacity)")
    figure.legend(*axes_of[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


@styled
def distributions(tables: Tables, sides: list[str]) -> Figure:
    """Empirical distributions (ms), one curve per repeat."""
    cells = list(dict.fromkeys(cell for cell, _ in tables))
    figure, axes_of = panels(cells, len(PER_REQUEST))
    for row, cell in enumerate(cells):
        for column, name in enumerate(PER_REQUEST):
            axes: Axes = axes_of[row, column]
            for index, side in enumerate(sides):
                for repeat, table in enumerate(tables.get((cell, side), [])):
                    values = np.sort(1e3 * table[name].dropna())
                    shares = np.arange(1, len(values) + 1) / max(len(values), 1)
                    label = side if repeat == 0 else None
                    line, colour = LINES[index % 4], arm_colour(index)
                    axes.step(values, shares, where="post", color=colour, linestyle=line, linewidth=0.9, label=label)
            axes.set_xscale("log")
            label_log_axis(axes.xaxis)
            if row == 0:
                axes.set_title(TITLES[name])
        axes_of[row, 0].set_ylabel(f"{cell}\nshare of requests")
    for axes in axes_of[-1]:
        axes.set_xlabel("ms")
    figure.legend(*axes_of[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


@styled
def request_by_request(tables: Tables, plan: Plan) -> Figure:
    """Milliseconds over milliseconds, means over the repeats."""
    cells = [cell for cell in dict.fromkeys(cell for cell, _ in tables) if (cell, plan.reference) in tables]
    figure, axes_of = panels(cells, len(PER_REQUEST))
    for row, cell in enumerate(cells):
        reference = mean_latencies(tables[cell, plan.reference])
        for column, name in enumerate(PER_REQUEST):
            axes: Axes = axes_of[row, column]
            for index, side in enumerate(plan.others):
                if (cell, side) not in tables:
                    continue
                values = mean_latencies(tables[cell, side])[name].reindex(reference.index)
                x, y, colour = 1e3 * reference[name], 1e3 * values, arm_colour(index)
                axes.plot(x, y, MARKERS[index % len(MARKERS)], color=colour, alpha=0.5, markersize=2, label=side)
            low, high = 1e3 * reference[name].min(), 1e3 * reference[name].max()
            axes.plot([low, high], [low, high], color=GREY, linestyle="--", linewidth=0.8)
            axes.set(xscale="log", yscale="log")
            label_log_axis(axes.xaxis)
            label_log_axis(axes.yaxis)
            if row == 0:
                axes.set_title(TITLES[name])
        axes_of[row, 0].set_ylabel(f"{cell}\nms")
    for axes in axes_of[-1]:
        axes.set_xlabel(f"ms, {plan.reference}")
    figure.legend(*axes_of[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure
