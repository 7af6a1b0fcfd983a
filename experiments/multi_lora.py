"""Many adapters in one batch: decode steps over the batch size (lesson 6), then the trace over arrival rates."""

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from experiments.continuous_batching import draw
from framework.arms import Arms, resolve_arms
from framework.console import make_console, short
from framework.engines import EngineCache
from framework.plots import Figure, save
from framework.plots_lora import steps_by_arm
from framework.points import write_atomically
from framework.provenance import environment, resolve_device
from framework.replay import Clock
from framework.report import report
from framework.speed import check_sizes, get_ready, measure_decode, why_not
from framework.study import run_study

BASE = "none"  # the arm that the others' times are compared with, if it is there


def run(
    *,
    arms: Arms,
    batch_sizes: list[int],
    num_adapters: int,
    identical: bool,
    context: int,
    num_steps: int,
    rates: list[float | None],
    seeds: list[int],
    trace: Any,
    model: Any,
    quantization: Any,
    lora: Any,
    engine: Any,
    scheduler: Any,
    slo: dict[str, float],
    clock: Clock,
    device: str,
    tracking: Any,
    output_dir: str,
    fresh: bool,
) -> None:
    """Time decode steps of every arm at `batch_sizes` ([]: skip), then replay the trace at `rates` ([]: skip).

    A step's sequences ask in turn for `num_adapters` adapters; with `identical` there are steps in which all ask for
    one, too. `context` is in tokens, `num_steps` steps are timed after a warm-up.
    """
    defaults = {
        "model": model,
        "quantization": quantization,
        "lora": lora,
        "engine": engine,
        "scheduler": scheduler,
        "trace": trace,
        "clock": clock,
    }
    console, folder = make_console(), Path(output_dir)
    figures: dict[str, Figure] = {}
    if batch_sizes:
        check_sizes({"decode": [[batch_size, context] for batch_size in batch_sizes]}, num_steps)
        engines = EngineCache(resolve_device(device), console.print)
        mixes = {"": num_adapters} | ({", one adapter": 1} if identical else {})
        steps = measure_steps(resolve_arms(arms, defaults), engines, batch_sizes, mixes, context, num_steps, console)
        title = f"{num_adapters} adapters, {environment(engines.device)['device']}"
        console.print(steps_table(steps, title))
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "steps.csv", steps.to_csv(index=False))
        figures["batch_latency"] = steps_by_arm(steps, title)
        del engines  # else its engine would have to fit beside the study's
    if rates:
        study = run_study(
            arms=arms,
            defaults=defaults,
            rates=rates,
            seeds=seeds,
            slo=slo,
            device=device,
            output_dir=output_dir,
            fresh=fresh,
        )
        report(study, "multi_lora", lambda study, points: figures | draw(study, points), tracking)
        study.raise_failures()
    else:
        save(figures, folder / "figures")


def measure_steps(
    arms: Arms,
    engines: EngineCache,
    batch_sizes: list[int],
    mixes: dict[str, int],
    context: int,
    num_steps: int,
    console: Console,
) -> pd.DataFrame:
    """One row per arm, mix and batch size: `arm`, `num_seqs`, `num_adapters` and seconds `device` and `elapsed`.

    `mixes`: what to add to the arm's name → how many adapters the sequences ask for in turn.
    """
    rows: list[dict[str, Any]] = []
    for arm, components in arms.items():
        with console.status(arm) as status:
            engines.on_progress = status.update
            engine: Any = engines.get(components)
            get_ready(engine, max(batch_sizes))
            for suffix, num_adapters in mixes.items() if engine.num_adapter_slots else [("", 0)]:
                for batch_size in batch_sizes:
                    reason = why_not("decode", engine, batch_size, context + num_steps)
                    if reason:
                        console.print(f"{arm}, batch {batch_size}: skipped, {reason}", highlight=False)
                        continue
                    case = measure_decode(engine, batch_size, context, num_steps, num_adapters or None)
                    times = {"num_seqs": batch_size, "device": case.device, "elapsed": case.elapsed}
                    rows.append({"arm": arm + suffix, "num_adapters": min(num_adapters, batch_size)} | times)
        engine = None  # else the next arm's would have to fit beside it
    return pd.DataFrame(rows)


def steps_table(steps: pd.DataFrame, title: str) -> Table:
    """Per arm and batch size, ms from one decode step to the next, and over the arm `none` where there is one."""
    times = steps.pivot_table(index="arm", columns="num_seqs", values="elapsed", sort=False)
    table = Table("arm", title=title, caption=f"decode: ms from step to step (× the arm {BASE}), per batch size")
    for batch_size in times.columns:
        table.add_column(str(batch_size), justify="right")
    for arm, row in times.iterrows():
        is_compared = BASE in times.index and arm != BASE
        factors = [f" ({factor:.2f}×)" for factor in row / times.loc[BASE]] if is_compared else [""] * len(row)
        table.add_row(str(arm), *(short(1e3 * time) + factor for time, factor in zip(row, factors, strict=True)))
    return table
