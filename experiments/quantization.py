"""Quantization: what every scheme takes, loses and costs, and what it serves in the same device memory.

Three parts, each on disk as it ends: models (bytes, errors, quality), engines (KV cache, decode steps, text), serving.
"""

from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.quantization_parts import Prompt, Session, Steps, Text, measure_engines, measure_models, within
from experiments.quantization_tables import capacity_table, engine_table, footprint_line, model_table, text_table
from framework import plots
from framework.arms import Arms, resolve_arms
from framework.config import describe, suggest
from framework.console import make_console
from framework.metrics import TARGET_ATTAINMENT, aggregate, capacity, check_slo, saturation
from framework.plots import Figure, save
from framework.plots_quantization import attainment_rate, decode_steps, quality_bytes
from framework.provenance import environment, resolve_device
from framework.replay import Clock
from framework.report import read_tables, report, representative_points
from framework.speed import ceilings_for, check_sizes
from framework.study import Study, check_points, run_study
from framework.trace.recorded import locate


def run(
    *,
    arms: Arms,
    only: list[str] | None,
    text: str | None,
    text_window: int,
    num_text_tokens: int | None,
    prompt: str | None,
    num_output_tokens: int,
    batch_sizes: list[int],
    context: int,
    num_steps: int,
    serving: list[str],
    memory_bytes: int | None,
    rates: list[float | None],
    seeds: list[int],
    slo: dict[str, float],
    trace: Any,
    model: Any,
    quantization: Any,
    lora: Any,
    engine: Any,
    scheduler: Any,
    clock: Clock,
    device: str,
    tracking: Any,
    output_dir: str,
    fresh: bool,
    reference: dict[str, Any] | None = None,
) -> None:
    """Measure the model and the engine of the arms in `only` (None: all), then serve the trace with those of `serving`.

    Quality is against the arm's model in float32, on the first `num_text_tokens` (None: all) of the file `text` (None:
    not measured) in windows of `text_window`. `prompt` (None: none) is continued by `num_output_tokens`. Decode steps
    are of `batch_sizes` sequences of `context` tokens; `num_steps` of each are timed. `memory_bytes` is for weights and
    KV cache together (None: the cache as the engine has it); `slo` is in seconds per metric; footprint_line explains
    `reference`. An arm that fails does not stop the others; StudyError names it at the end.
    """
    check_sizes({"decode": [[batch_size, context] for batch_size in batch_sizes]}, num_steps)
    check_names("only", [] if only is None else only, arms)
    chosen = arms if only is None else {arm: arms[arm] for arm in only}
    defaults = {"model": model, "quantization": quantization, "lora": lora, "engine": engine, "scheduler": scheduler}
    variants = resolve_arms(chosen, defaults | {"trace": trace, "clock": clock})
    check_names("reference.arms", [] if reference is None else reference["arms"], variants)
    check_serving(serving, variants, rates, seeds, slo)
    held_out = None if text is None else Text(existing(text), text_window, num_text_tokens)
    start = None if prompt is None else Prompt(prompt, num_output_tokens)
    session = Session(variants, resolve_device(device), Path(output_dir), make_console())
    ceilings = ceilings_for(model, engine, session.device) if batch_sizes else None
    steps = None if ceilings is None else Steps(batch_sizes, context, num_steps, ceilings)
    where = environment(session.device)
    settings = {"text": text, "text_window": text_window, "memory_bytes": memory_bytes}
    session.write_json("quantization.json", {"config": describe(variants), "environment": where, **settings})
    models = measure_models(session, held_out)
    if models.empty:
        session.finish()
    session.console.print(model_table(models, f"models on {where['device']}"))
    if reference is not None:
        session.say(footprint_line(models, **reference))
    engines, cases = measure_engines(session, memory_bytes, steps, start)
    if steps is not None or memory_bytes is not None:
        session.console.print(engine_table(engines, cases, memory_bytes, f"engines on {where['device']}"))
    if start is not None:
        session.console.print(text_table(engines, start.text), markup=False)
    figures = draw_parts(models, cases, where["device"])
    paths = save(figures, session.folder / "figures")
    if serving:
        study = run_study(
            arms={arm: within(variants[arm], memory_bytes) for arm in serving}, defaults={}, rates=rates, seeds=seeds,
            slo=slo, device=device, output_dir=output_dir, fresh=fresh,
        )  # fmt: skip
        points = report(study, "quantization", partial(draw, figures=figures), tracking)
        report_capacity(session, engines, points, memory_bytes)
        session.adopt(study)
    else:
        session.written |= dict.fromkeys(paths)
    session.finish()


def check_serving(
    serving: list[str], arms: Arms, rates: list[float | None], seeds: list[int], slo: dict[str, float]
) -> None:
    """What the last part would refuse, before the first one begins."""
    check_names("serving", serving, arms)
    check_slo(slo)
    if serving:
        check_points(arms, rates, seeds)
    for arm in serving:
        arms[arm]["trace"](rate=rates[0], seed=seeds[0])


def draw_parts(models: pd.DataFrame, cases: pd.DataFrame, title: str) -> dict[str, Figure]:
    """The figures of what was measured: none of a quality without a text, none of steps without batch sizes."""
    figures = {"quality_bytes": quality_bytes(models, title)} if "kl" in models else {}
    return figures | ({} if cases.empty else {"decode_steps": decode_steps(cases, title)})


def draw(study: Study, points: pd.DataFrame, *, figures: dict[str, Figure]) -> dict[str, Figure]:
    """The serving curves beside the other parts' `figures`, and the KV cache in use at the highest rate."""
    summary, saturation_rates = aggregate(points), saturation(points)
    rate = points["rate"].max()
    steps = read_tables(representative_points(study, points, rate), "steps.parquet")
    title = "all at once" if rate == inf else f"{rate:g} requests/s"
    drawn = {"batch_and_cache": plots.batch_and_cache(steps, title)}
    if len(set(points["rate"])) > 1:
        drawn["throughput_latency"] = plots.throughput_latency(summary, saturation_rates)
        drawn["latency_rate"] = plots.latency_rate(summary, saturation_rates)
        drawn["attainment_rate"] = attainment_rate(summary, capacity(points), TARGET_ATTAINMENT)
    return figures | drawn


def report_capacity(session: Session, engines: pd.DataFrame, points: pd.DataFrame, memory_bytes: int | None) -> None:
    """What each arm holds in the memory that all of them had, and what it serves (requests/s): capacity.csv."""
    if engines.empty:
        return
    held = engines.loc[engines["arm"].isin(points["arm"]), ["arm", "weight_bytes", "kv_bytes", "num_blocks"]]
    limits = {"capacity": capacity(points), "served_at_most": saturation(points)}
    table = held.assign(**{name: held["arm"].map(rates) for name, rates in limits.items()})
    session.write("capacity.csv", table)
    session.console.print(capacity_table(table, memory_bytes))


def check_names(name: str, chosen: list[str], arms: Arms) -> None:
    for arm in chosen:
        if arm not in arms:
            raise ValueError(f"{name} has {arm!r}, which is no arm{suggest(arm, arms)}")


def existing(text: str) -> Path:
    path = locate(text)
    if not path.is_file():
        raise ValueError(f"text={text} is no file: give a text, or null to measure no quality")
    return path
