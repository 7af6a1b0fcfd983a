"""Virtual against wall clock: a trace replayed with measured steps and in real time must give the same numbers."""

from typing import Any

import pandas as pd
from rich.table import Table

from framework.arms import Arms
from framework.plots import Figure, latency_cdf
from framework.report import read_tables, report, representative_points
from framework.study import Study, run_study

COMPARED = ("output_throughput", "ttft_p50", "tpot_p50", "ttft_p99", "tpot_p99", "e2e_mean")


def run(
    *,
    arms: Arms,
    rates: list[float | None],
    seeds: list[int],
    trace: Any,
    model: Any,
    quantization: Any,
    lora: Any,
    engine: Any,
    scheduler: Any,
    slo: dict[str, float],
    device: str,
    tracking: Any,
    output_dir: str,
    fresh: bool,
) -> None:
    """Replay the trace under both clocks (`arms`) in turns and print by how much the numbers differ."""
    study = run_study(
        arms=arms,
        defaults={
            "model": model,
            "quantization": quantization,
            "lora": lora,
            "engine": engine,
            "trace": trace,
            "scheduler": scheduler,
            "clock": "virtual",
        },
        rates=rates,
        seeds=seeds,
        slo=slo,
        device=device,
        output_dir=output_dir,
        fresh=fresh,
    )
    points = report(study, "clock_fidelity", draw, tracking)
    study.raise_failures()
    print_differences(study, points)


def draw(study: Study, points: pd.DataFrame) -> dict[str, Figure]:
    rate = points["rate"].max()
    tables = read_tables(representative_points(study, points, rate), "requests.parquet")
    return {"latency_cdf": latency_cdf(tables)}


def print_differences(study: Study, points: pd.DataFrame) -> None:
    """Per rate, the virtual clock's numbers relative to the wall clock's, as medians over the seeds."""
    table = Table(
        "rate, req/s",
        *COMPARED,
        title="virtual relative to wall clock (median over seeds)",
        caption="expected: throughput within 2%, median TTFT and TPOT within 5%",
    )
    for rate, rows in points.groupby("rate"):
        by_seed = rows.pivot_table(index="seed", columns="arm", values=list(COMPARED))
        ratios = [(by_seed[metric]["virtual"] / by_seed[metric]["wall"]).median() - 1 for metric in COMPARED]
        table.add_row(f"{rate:g}", *(f"{ratio:+.1%}" for ratio in ratios))
    study.console.print(table)
