"""Table → figure; what all figures share. Sized for a paper column, colour-blind safe (Okabe & Ito 2008)."""

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from framework.study.files import UNFINISHED

P = ParamSpec("P")
COLUMN_WIDTH, TEXT_WIDTH = 3.35, 6.9  # inches
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
LINES = ("-", "--", "-.", ":")
MAX_BESIDE = 7  # entries of a legend in one row
GREY = "#555555"  # of what is no arm: floors, targets, references
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "errorbar.capsize": 1.5,
    "legend.frameon": False,
    "svg.hashsalt": "figures",
    "figure.constrained_layout.use": True,
}


Drawn = tuple[Figure, str]  # a figure and its caption


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """The same function, drawing in the style that all figures share."""

    @wraps(draw)
    def in_style(*arguments: P.args, **keywords: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*arguments, **keywords)

    return in_style


def arm_colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def arm_style(index: int) -> dict[str, Any]:
    """The colour and the marker of the arm that stands at `index`."""
    return {"color": arm_colour(index), "marker": MARKERS[index % len(MARKERS)]}


def save(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Write every figure as PNG and SVG, and remove those of before; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        for path, options in (
            (folder / f"{name}.png", {"dpi": 200}),
            (folder / f"{name}.svg", {"metadata": {"Date": None}}),
        ):
            unfinished = path.with_name(UNFINISHED + path.name)
            with mpl.rc_context(STYLE):
                figure.savefig(unfinished, **options)
            unfinished.replace(path)
            paths.append(path)
    for earlier in {*folder.glob("*.png"), *folder.glob("*.svg")} - {*paths}:
        earlier.unlink()
    return paths


def errors(rows: pd.DataFrame, metric: str, scale: float = 1.0) -> "np.ndarray | None":
    """(2, num_rows) distances below and above the value; zero, or None for all, where there is no interval."""
    low, high = rows[f"{metric}_low"], rows[f"{metric}_high"]
    if low.isna().all():
        return None
    return scale * np.nan_to_num(np.clip(np.array([rows[metric] - low, high - rows[metric]]), 0, None))


def add_wide_legend(figure: Figure, arms: Iterable[str], lines: Mapping[str, Any]) -> None:
    """Above the axes of a figure as wide as the text: the arms in their styles, and labels → line styles in grey."""
    handles = [Line2D([], [], **arm_style(index), label=arm) for index, arm in enumerate(arms)]
    handles += [Line2D([], [], color=GREY, linestyle=line, label=label) for label, line in lines.items()]
    num_rows = -(-len(handles) // MAX_BESIDE)
    figure.legend(handles=handles, loc="outside upper center", ncols=-(-len(handles) // num_rows))


def label_batch_sizes(axes: Axes, batch_sizes: pd.Series) -> None:
    axes.set_xscale("log", base=2)
    values = sorted(set(batch_sizes))
    axes.set_xticks(values, [str(value) for value in values])
    axes.set_xlabel("batch size")


def label_log_axis(axis: Axis) -> None:
    """1, 2 and 5 of every decade, written out; 1 only if what is drawn spans many, or two on a narrow axis."""
    low, high = axis.get_data_interval()
    place = axis.axes.get_subplotspec()
    is_narrow = isinstance(axis, XAxis) and place is not None and place.get_gridspec().ncols > 2
    subs = (1.0, 2.0, 5.0) if high < (50 if is_narrow else 300) * low else (1.0,)
    axis.set_major_locator(mpl.ticker.LogLocator(subs=subs, numticks=9))
    axis.set_minor_locator(mpl.ticker.NullLocator())
    axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))
