"""Tables as the console and the page show them: numbers in their units, over their intervals."""

from collections.abc import Mapping
from math import inf

import pandas as pd
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from framework.checks import printable
from framework.measure.metric import MILLISECONDS
from framework.measure.metrics import METRIC_OF
from framework.measure.rates import aggregate

SHOWN = (  # of METRICS, on the page and the console
    "request_throughput",
    "output_throughput",
    "ttft_p50",
    "ttft_p99",
    "tpot_p50",
    "tpot_p99",
    "normalized_latency_mean",
    "slo_attainment",
    "mean_batch_size",
    "prefix_hits",
    "imbalance_busy",
)
WHERE_ANY = ("prefix_hits", "imbalance_busy")  # shown where there are prefix hits, and several servers
NOT_NARROW = ("imbalance_busy",)  # a terminal has no room for it; the table of the servers has it
COST = "cost per million output tokens"  # in the currency of the price
INTERVALS = "[low, high]: 95% interval, over seeds if there are several, else bootstrap within the one run"


def short(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def in_units(table: pd.DataFrame, columns: Mapping[str, tuple[str, float]]) -> pd.DataFrame:
    """The columns to show, under their headers and multiplied with their factors, as are their intervals."""
    return pd.DataFrame(
        {
            f"{header}{end}": scale * table[f"{name}{end}"]
            for name, (header, scale) in columns.items()
            for end in ("", "_low", "_high")
            if f"{name}{end}" in table
        }
    )


def with_intervals(frame: pd.DataFrame) -> tuple[list[str], list[list[object]]]:
    """Headers and rows, where `X_low` and `X_high` are no columns: the cells of X are [value, low, high]."""
    names = [str(name) for name in frame.columns]
    shown = [name for name in names if not name.endswith(("_low", "_high"))]
    rows = [
        [
            [row[name], row[f"{name}_low"], row[f"{name}_high"]] if f"{name}_low" in names else row[name]
            for name in shown
        ]
        for row in frame.astype(object).to_dict("records")
    ]
    return shown, rows


def print_frame(console: Console, frame: pd.DataFrame, title: str, caption: str | None = None) -> None:
    """A table as it is, numbers to the right and over their intervals; a list of its rows where it is too wide."""
    names, rows = with_intervals(frame)
    headers, texts = [printable(name) for name in names], [[printable(cell(value)) for value in row] for row in rows]
    table = Table(title=escape(printable(title)), caption=caption and escape(printable(caption)))
    if needed_width(headers, texts) > console.width:
        table.show_header, table.title_justify = False, "left"
        table.add_column(no_wrap=True, overflow="fold")
        table.add_column(overflow="fold")
        for row in texts:
            for header, text in zip(headers, row, strict=True):
                table.add_row(*(Text(" ".join(part.splitlines())) for part in (header, text)))
            table.add_section()
    else:
        for name, header in zip(names, headers, strict=True):
            is_text = frame[name].map(lambda value: isinstance(value, str)).all()
            justify: JustifyMethod = "left" if is_text else "right"
            table.add_column(Text(header), justify=justify, no_wrap=name == "arm", overflow="fold")
        for row in texts:
            table.add_row(*map(Text, row))
    console.print(table)


def needed_width(headers: list[str], rows: list[list[str]]) -> int:
    """Columns of a terminal at which a table breaks no word of a header and no number."""
    columns = zip(headers, *rows, strict=True)
    widths = [max(cell_len(word) for text in column for word in text.split() or [""]) for column in columns]
    return sum(width + 3 for width in widths) + 1


def cell(value: object) -> str:
    """A cell as text: whole numbers in full, others with three digits, and a dash where there is nothing."""
    if isinstance(value, list):
        value, low, high = map(cell, value)
        return value if low == cell(None) else f"{value}\n[{low}, {high}]"
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() else short(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def overview(points: pd.DataFrame, price_per_gpu_hour: float | None = None) -> pd.DataFrame:
    """One row per arm and rate, as the page shows it: means over seeds with their intervals; with a price, the cost."""
    summary = aggregate(points)
    table = shown_metrics(summary, is_narrow=False)
    if price_per_gpu_hour is None:
        return table
    return table.assign(**{COST: price_per_gpu_hour * summary["gpu_hours_per_million_tokens"]})


def print_overview(console: Console, summary: pd.DataFrame, title: str) -> None:
    """The same of what `aggregate` made, with short headers and the intervals of times alone: it fits on a terminal."""
    print_frame(console, shown_metrics(summary, is_narrow=True), title, INTERVALS)


def shown_metrics(summary: pd.DataFrame, is_narrow: bool) -> pd.DataFrame:
    hidden = {column for column in WHERE_ANY if not summary[column].fillna(0).any()}
    shown_columns = [column for column in SHOWN if column not in hidden.union(NOT_NARROW if is_narrow else ())]
    metrics = {column: METRIC_OF[column] for column in shown_columns}
    columns = {column: (metric.header(column, is_narrow), metric.unit.scale) for column, metric in metrics.items()}
    bare = [column for column in shown_columns if is_narrow and metrics[column].unit is not MILLISECONDS]
    shown = in_units(summary.drop(columns=[f"{column}{end}" for column in bare for end in ("_low", "_high")]), columns)
    users = {"users": summary["users"]} if "users" in summary else {}
    rates = {"rate (req/s)": shown_rates(summary["offered_rate"])}
    return pd.DataFrame({"arm": summary["arm"], **users, **rates}).join(shown)


def shown_rates(rates: "pd.Series[float]") -> "pd.Series[float | str]":
    return pd.Series([float(rate) if rate < inf else "at once" for rate in rates], dtype=object)


def load_titles(points: pd.DataFrame) -> list[str]:
    """What was asked for of each point: a rate, or a number of users."""
    if "users" in points:
        return [f"users={users}" for users in points["users"]]
    return [rate_title(rate) for rate in points["rate"]]


def rate_title(rate: float) -> str:
    return "all at once" if rate == inf else f"{short(rate)} requests/s"
