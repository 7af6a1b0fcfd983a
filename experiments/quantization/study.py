"""Quantization: what every scheme takes, loses and costs, and what it serves in the same device memory.

Three parts, each on disk as it ends: models (bytes, errors, quality), engines (KV cache, decode steps, text), serving.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd
from typing_extensions import Unpack

from experiments.quantization.figures import decode_steps, quality_bytes
from experiments.quantization.parts import Prompt, Session, Steps, Text, measure_engines, measure_models, within
from experiments.quantization.tables import CAPTIONS, capacity_table, footprint_notes, memory, part_tables
from framework.build import MakeScheduler, resolve_device
from framework.config import suggest
from framework.core import StudyError
from framework.measure.metrics import check_slo
from framework.measure.rates import TARGET_ATTAINMENT, aggregate, capacity, saturation
from framework.measure.steps import ceilings_for, check_sizes
from framework.paths import locate
from framework.replay import Clock
from framework.report import sweep_plots
from framework.report.finish import conclude, report
from framework.report.plots import Figure
from framework.study.arms import Arm, parts_of, resolve_arms
from framework.study.progress import make_console
from framework.study.provenance import environment
from framework.study.sweep import Replays, Study, Sweep, check_points, read_tables, representative_points, run_study


def run(
    *,
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
    scheduler: MakeScheduler,
    clock: Clock,
    reference: dict[str, Any] | None = None,
    **sweep: Unpack[Sweep],
) -> None:
    """Measure the model and the engine of the arms in `only` (None: all), then serve the trace with those of `serving`.

    Quality is against the arm's model in float32, on the first `num_text_tokens` (None: all) of the file `text` (None:
    not measured) in windows of `text_window`. `prompt` (None: none) is continued by `num_output_tokens`. Decode steps
    are of `batch_sizes` sequences of `context` tokens; `num_steps` of each are timed. `memory_bytes` is for weights and
    KV cache together (None: the cache as the engine has it); `slo` is in seconds per metric; footprint_notes explains
    `reference`. An arm that fails does not stop the others; StudyError names it at the end.
    """
    check_sizes({"decode": [[batch_size, context] for batch_size in batch_sizes]}, num_steps)
    arms = sweep["arms"]
    check_names("only", [] if only is None else only, arms)
    chosen = arms if only is None else {arm: arms[arm] for arm in only}
    variants = resolve_arms(chosen, parts_of(sweep) | {"scheduler": scheduler, "clock": clock})
    check_names("reference.arms", [] if reference is None else reference["arms"], variants)
    check_serving(serving, variants, sweep["rates"], sweep["seeds"], sweep["slo"])
    held_out = None if text is None else Text(existing(text), text_window, num_text_tokens)
    start = None if prompt is None else Prompt(prompt, num_output_tokens)
    session = Session(variants, resolve_device(sweep["device"]), Path(sweep["output_dir"]), make_console())
    ceilings = ceilings_for(sweep["model"], sweep["engine"], session.device) if batch_sizes else None
    steps = None if ceilings is None else Steps(batch_sizes, context, num_steps, ceilings)
    where = environment(session.device)
    settings = {"text": text, "text_window": text_window, "prompt": prompt, "memory_bytes": memory_bytes}
    session.write_json(
        "quantization.json",
        {"config": {name: arm.config for name, arm in variants.items()}, "environment": where, **settings},
    )
    models = measure_models(session, held_out)
    if models.empty:
        session.finish()
    engines, cases = measure_engines(session, memory_bytes, steps, start)
    figures = draw_parts(models, cases, where["device"])
    tables = part_tables(models, engines, cases, settings)
    study = serve(session, {arm: within(variants[arm], memory_bytes) for arm in serving}, sweep)
    notes = [] if reference is None else footprint_notes(models, **reference)
    notes += [f"Failed: {line}" for line in session.failures]
    caption = f"Capacity: {memory(memory_bytes)}"
    leave_page(
        session,
        study,
        lambda points: {caption: capacity_table(engines, points)},
        figures,
        tables,
        notes,
        sweep.get("tracking"),
    )
    session.finish()


def leave_page(
    session: Session,
    study: Study | None,
    capacities: Callable[[pd.DataFrame], dict[str, pd.DataFrame]],
    figures: dict[str, Figure],
    tables: dict[str, pd.DataFrame],
    notes: list[str],
    tracking: Any,
) -> None:
    """The page of a sweep where an arm served, with `capacities(points)` before the other parts' tables."""
    if study is not None:
        report(
            study,
            "quantization",
            partial(draw, figures=figures),
            tracking,
            captions=CAPTIONS,
            tables=lambda points: capacities(points) | tables,
            notes=lambda _: notes,
        )
        session.adopt(study)
        return
    where = environment(session.device)
    conclude(
        session.console,
        session.folder,
        title=f"quantization on {where['device']}",
        environment=where,
        files={},
        figures={name: (figure, CAPTIONS[name]) for name, figure in figures.items()},
        tables=tables,
        notes=notes,
    )


def serve(session: Session, arms: dict[str, Arm], sweep: Replays) -> Study | None:
    """Every point of the arms that serve; None if there is none."""
    if not arms:
        return None
    try:
        return run_study(arms, sweep)
    except StudyError as error:
        session.fail("serving", f"{error}")
        return None


def check_serving(
    serving: list[str], arms: dict[str, Arm], rates: list[float | None], seeds: list[int], slo: dict[str, float]
) -> None:
    """What the last part would refuse, before the first one begins."""
    check_names("serving", serving, arms)
    check_slo(slo)
    if serving:
        check_points(arms, rates, seeds)
    for arm in serving:
        arms[arm].trace(rate=rates[0], seed=seeds[0])


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
    drawn = {"batch_and_cache": sweep_plots.batch_and_cache(steps, title)}
    if len(set(points["rate"])) > 1:
        drawn["throughput_latency"] = sweep_plots.throughput_latency(summary)
        drawn["latency_rate"] = sweep_plots.latency_rate(summary, saturation_rates)
        drawn["attainment_rate"] = sweep_plots.attainment_rate(summary, capacity(points), TARGET_ATTAINMENT)
    return figures | drawn


def check_names(name: str, chosen: list[str], arms: Mapping[str, object]) -> None:
    for arm in chosen:
        if arm not in arms:
            raise ValueError(f"{name} has {arm!r}, which is no arm{suggest(arm, arms)}")


def existing(text: str) -> Path:
    path = locate(text)
    if not path.is_file():
        raise ValueError(f"text={text} is no file: give a text, or null to measure no quality")
    return path
