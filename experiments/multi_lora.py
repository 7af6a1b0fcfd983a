"""Many adapters in one batch: decode steps over the batch size (lesson 6), then the trace over arrival rates."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from experiments.adapter_tables import adapter_tables
from experiments.continuous_batching import draw
from framework.arms import Arms, resolve_arms
from framework.console import make_console
from framework.engines import EngineCache
from framework.fairness import DEFINITIONS
from framework.lora.segmented import Segmented
from framework.metrics import check_slo
from framework.plots_lora import steps_by_arm
from framework.points import write_atomically
from framework.provenance import environment, resolve_device
from framework.replay import Clock
from framework.report import conclude, report
from framework.speed import check_sizes, get_ready, measure_decode, why_not
from framework.study import check_points, run_study

BASE = "none"  # the arm that the others' steps are compared with, if it is there
CAPTION = "Time from one decode step to the next over the batch size, one line per arm; sequences ask in turn for {}."
ON_CPU = "{}: on a CPU the kernels' plain reference runs, one adapter after the other, and says nothing of their speed"


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
    check_sizes({"decode": [[batch_size, context] for batch_size in batch_sizes]}, num_steps)
    defaults = {"model": model, "quantization": quantization, "lora": lora, "engine": engine, "scheduler": scheduler}
    variants = resolve_arms(arms, defaults | {"trace": trace, "clock": clock})
    if rates:
        check_slo(slo)
        check_points(variants, rates, seeds)
    elif not batch_sizes:
        raise ValueError("rates and batch_sizes are both empty: nothing is left to measure")
    console, resolved, folder = make_console(), resolve_device(device), Path(output_dir)
    surroundings = environment(resolved)
    figures, captions, tables = {}, {}, {}
    if batch_sizes:
        mixes = {"": num_adapters} | ({", one adapter": 1} if identical else {})
        steps = measure_steps(variants, resolved, batch_sizes, mixes, context, num_steps, console)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "steps.csv", steps.to_csv(index=False))
        wanted = f"{num_adapters} adapters"
        figures = {"batch_latency": steps_by_arm(steps, f"{wanted}, {surroundings['device']}")}
        captions, tables = {"batch_latency": CAPTION.format(wanted)}, {"Decode steps (ms) by batch size": growth(steps)}
    notes = [ON_CPU.format(arm) for arm in variants if is_reference(variants[arm]["lora"], resolved)]
    if rates:
        study = run_study(
            arms=variants, defaults={}, rates=rates, seeds=seeds, slo=slo, device=device, output_dir=output_dir,
            fresh=fresh,
        )  # fmt: skip
        report(
            study,
            "multi_lora",
            lambda study, points: figures | draw(study, points),
            tracking,
            captions=captions,
            tables=lambda points: tables | adapter_tables(study, points),
            notes=lambda points: notes,
            definitions=DEFINITIONS,
        )
        study.raise_failures()
    else:
        drawn = {name: (figure, captions[name]) for name, figure in figures.items()}
        title = f"decode steps on {surroundings['device']}"
        conclude(
            console, folder, title=title, environment=surroundings, files={}, figures=drawn, tables=tables, notes=notes
        )


def is_reference(lora: Any, device: torch.device) -> bool:
    """Whether this way of serving adapters is there for its kernels, and `device` has none."""
    return device.type == "cpu" and "strategy" in lora.keywords and lora.keywords["strategy"].func is Segmented


def measure_steps(
    arms: Arms,
    device: torch.device,
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
    engines = EngineCache(device, console.print)
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


def growth(steps: pd.DataFrame) -> pd.DataFrame:
    """Per arm and batch size, ms from one decode step to the next; how it grows, and over the arm `none`, if any."""
    table = 1e3 * steps.pivot_table(index="arm", columns="num_seqs", values="elapsed", sort=False)
    first, last = table.columns[0], table.columns[-1]
    ratios = {f"{last} ÷ {first}": table[last] / table[first]} if last != first else {}
    if BASE in table.index:
        ratios |= {f"÷ {BASE}, at {size}": table[size] / table.loc[BASE, size] for size in {first: 0, last: 0}}
    return table.assign(**ratios).rename(columns=str).reset_index()
