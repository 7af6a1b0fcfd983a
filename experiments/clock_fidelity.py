"""Virtual against wall clock: a trace replayed with measured steps and in real time must give the same numbers."""

from typing import Any

import pandas as pd

from framework.report.finish import report
from framework.report.plots import Figure
from framework.report.sweep_plots import latency_cdf
from framework.study.arms import Arms
from framework.study.sweep import Study, read_tables, representative_points, run_study

CAPTION = (
    "Virtual relative to wall clock (median over seeds); expected: throughput within 2%, median TTFT and TPOT within 5%"
)
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
    tracking: Any = None,
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
    report(study, "clock_fidelity", draw, tracking, tables=lambda points: {CAPTION: differences(points)})
    study.raise_failures()


def draw(study: Study, points: pd.DataFrame) -> dict[str, Figure]:
    rate = points["rate"].max()
    tables = read_tables(representative_points(study, points, rate), "requests.parquet")
    return {"latency_cdf": latency_cdf(tables)}


def differences(points: pd.DataFrame) -> pd.DataFrame:
    """Per rate (1/s), the virtual clock's numbers relative to the wall clock's, as medians over the seeds both have."""
    rows = []
    for rate, group in points.groupby("rate"):
        by_seed = group.pivot_table(index="seed", columns="arm", values=list(COMPARED))
        if {"virtual", "wall"} <= set(group["arm"]):
            ratios = {
                metric: (by_seed[metric]["virtual"] / by_seed[metric]["wall"]).median() - 1 for metric in COMPARED
            }
            rows.append({"rate (1/s)": rate} | {metric: f"{ratio:+.1%}" for metric, ratio in ratios.items()})
    return pd.DataFrame(rows, columns=["rate (1/s)", *COMPARED])
