"""What the operator sees: progress with tokens/s and ETA, one line per point, the final table, one line per failure."""

import time
from collections.abc import Mapping
from math import inf
from types import TracebackType
from typing import Any, Self

import pandas as pd
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from framework.core import Step

REFRESH_INTERVAL = 0.5  # seconds of real time; drawn between steps, so never inside a measured window


def make_console() -> Console:
    """A terminal of its own width, or 140 columns where the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


class TokensPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} tok/s" if task.speed else "- tok/s")


class SweepProgress:
    """A bar over the output tokens of all points; the tokens of points not yet begun are taken to be as many."""

    def __init__(self, console: Console, num_points: int) -> None:
        self.console = console
        self.num_points = num_points
        self.num_done = 0
        self.num_reused = 0
        self.started = time.monotonic()
        self.refreshed = self.started
        columns = (TextColumn("{task.description}"), BarColumn(), TokensPerSecond(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, auto_refresh=False, transient=True, speed_estimate_period=10)
        self.task = self.bar.add_task("starting", total=None)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def say(self, label: str) -> None:
        self.bar.update(self.task, description=f"[{self.num_done + 1}/{self.num_points}] {label}")
        self.bar.refresh()

    def begin_point(self, label: str, num_output_tokens: int) -> None:
        remaining = (self.num_points - self.num_done) * num_output_tokens
        completed = self.bar.tasks[0].completed
        self.bar.update(self.task, total=completed + remaining)
        self.say(label)

    def advance(self, step: Step) -> None:
        self.bar.advance(self.task, step.num_output_tokens)
        if time.monotonic() - self.refreshed > REFRESH_INTERVAL:
            self.bar.refresh()
            self.refreshed = time.monotonic()

    def end_point(self, label: str, metrics: dict[str, float], reused: bool) -> None:
        self.num_done += 1
        self.num_reused += reused
        line = (
            f"[{self.num_done}/{self.num_points}] {label}: {metrics['output_throughput']:,.0f} tok/s, "
            f"TTFT P50 {1e3 * metrics['ttft_p50']:.1f} ms, TPOT P50 {1e3 * metrics['tpot_p50']:.2f} ms"
        )
        self.console.print(line + (" [dim](reused)[/dim]" if reused else f"{self.eta()}"), highlight=False)

    def fail_point(self, label: str, message: str | None) -> None:
        """`message` None: the cause was told before."""
        self.num_done += 1
        if message is None:
            return
        self.console.print(f"[{self.num_done}/{self.num_points}] {label}: ", end="", highlight=False)
        self.console.print("failed", style="red", end=" ")
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def eta(self) -> str:
        num_computed = self.num_done - self.num_reused
        remaining = (time.monotonic() - self.started) / num_computed * (self.num_points - self.num_done)
        return f" [dim](about {remaining:.0f} s left)[/dim]" if self.num_done < self.num_points else ""


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
