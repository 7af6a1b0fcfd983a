"""What the operator sees: progress with tokens/s and ETA, one line per point, the final table, one line per failure."""

from collections.abc import Mapping
from math import inf
from typing import Any

import pandas as pd
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from framework.measure.rates import aggregate

COLUMNS = {  # of the page's table: metric → header, and what its seconds are multiplied with
    "request_throughput": ("request throughput (1/s)", 1),
    "output_throughput": ("output throughput (tok/s)", 1),
    "ttft_p50": ("TTFT P50 (ms)", 1e3),
    "ttft_p99": ("TTFT P99 (ms)", 1e3),
    "tpot_p50": ("TPOT P50 (ms)", 1e3),
    "tpot_p99": ("TPOT P99 (ms)", 1e3),
    "normalized_latency_mean": ("normalized latency, mean (ms)", 1e3),
    "slo_attainment": ("SLO met (%)", 100),
    "mean_batch_size": ("mean batch", 1),
}


def print_table(console: Console, summary: pd.DataFrame, title: str) -> None:
    """`summary` has one row per (arm, rate) as `metrics.aggregate` makes it."""
    table = Table(
        title=title,
        caption=r"\[low, high]: 95% interval, over seeds if there are several, else bootstrap within the one run",
    )
    table.add_column("arm", no_wrap=True)
    rates = ("rate\nreq/s", "done\nreq/s", "output\ntok/s")
    times = ("TTFT P50\nms", "TTFT P99\nms", "TPOT P50\nms", "TPOT P99\nms", "norm. latency\nmean, ms/token")
    for header in (*rates, *times, "SLO\nmet", "mean\nbatch"):
        table.add_column(header, justify="right", overflow="fold")
    for _, row in summary.iterrows():
        latencies = ("ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99", "normalized_latency_mean")
        table.add_row(
            row["arm"],
            f"{row['rate']:.4g}" if row["rate"] < inf else "at once",
            f"{row['request_throughput']:.4g}",
            f"{row['output_throughput']:,.0f}",
            *(milliseconds(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in latencies),
            f"{row['slo_attainment']:.1%}",
            f"{row['mean_batch_size']:.1f}",
        )
    console.print(table)


def milliseconds(value: float, low: float, high: float) -> str:
    """`value` in ms over its interval; NaN bounds: too few values for one."""
    return short(1e3 * value) + ("" if low != low else f"\n\\[{short(1e3 * low)}, {short(1e3 * high)}]")


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


def with_intervals(frame: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
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
    """A table as it is, numbers to the right and over their intervals; where room is short, arms keep their names."""
    table = Table(title=escape(title), caption=caption)
    names, rows = with_intervals(frame)
    for name in names:
        justify: JustifyMethod = "right" if pd.api.types.is_numeric_dtype(frame[name]) else "left"
        table.add_column(Text(name), justify=justify, no_wrap=name == "arm", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    console.print(table)


def cell(value: Any) -> str:
    """A cell as text: whole numbers in full, others with three digits, and a dash where there is nothing."""
    if isinstance(value, list):
        value, low, high = map(cell, value)
        return value if low == cell(None) else f"{value}\n[{low}, {high}]"
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() else short(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def overview(points: pd.DataFrame) -> pd.DataFrame:
    """One row per arm and rate, as the page shows it: means over seeds with their intervals."""
    summary = aggregate(points)
    shown = pd.DataFrame({"arm": summary["arm"], "rate (1/s)": shown_rates(summary["rate"])})
    return shown.join(in_units(summary, COLUMNS))


def shown_rates(rates: "pd.Series[float]") -> "pd.Series[Any]":
    return pd.Series([float(rate) if rate < inf else "at once" for rate in rates], dtype=object)


def rate_title(rate: float) -> str:
    return "all at once" if rate == inf else f"{rate:g} requests/s"
