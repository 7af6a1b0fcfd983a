"""Quantization: what every scheme takes, loses and costs, and what it serves in the same device memory.

Three parts, each on disk as it ends: models (bytes, errors, quality), engines (KV cache, decode steps, text), serving.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from typing_extensions import TypedDict, Unpack

from experiments.quantization.figures import decode_steps, quality_bytes
from experiments.quantization.parts import Prompt, Session, Steps, Text, measure_engines, measure_models, within
from experiments.quantization.tables import CAPTIONS, Settings, footprint_notes, memory, part_tables, room_table
from framework.build import MakeScheduler
from framework.checks import whole
from framework.errors import StudyError
from framework.measure.slo import check_slo
from framework.measure.steps import ceilings_for, check_sizes
from framework.paths import locate
from framework.replay import Clock
from framework.report.finish import Findings, finish, finish_sweep
from framework.report.plots import Drawn
from framework.report.rate_plots import rate_figures
from framework.report.sweep_plots import cache_figure
from framework.study.arguments import Replays, Sweep, check_points
from framework.study.arms import Arm, check_named, configs_of, parts_of, resolve_arms
from framework.study.auto_rates import Rates, rates_to_try
from framework.study.place import open_place
from framework.study.sweep import Study, run_study


class Reference(TypedDict):
    """A source's bytes of the model of each of `arms`; `not_kept` of them are no weights."""

    arms: list[str]
    num_bytes: list[int]
    not_kept: int
    source: str


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
    reference: Reference | None = None,
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
    check_named("only", only or [], arms)
    chosen = arms if only is None else {arm: arms[arm] for arm in only}
    variants = resolve_arms(chosen, parts_of(sweep) | {"scheduler": scheduler, "clock": clock})
    check_named("reference.arms", [] if reference is None else reference["arms"], variants)
    check_serving(serving, variants, sweep["rates"], sweep["seeds"], sweep["slo"])
    held_out = None if text is None else Text(existing(text), whole("text_window", text_window), num_text_tokens)
    start = None if prompt is None else Prompt(prompt, num_output_tokens)
    session = Session(**vars(open_place(sweep["device"], sweep["output_dir"])), arms=variants)
    ceilings = ceilings_for(sweep["model"], sweep["engine"], session.device) if batch_sizes else None
    steps = None if ceilings is None else Steps(batch_sizes, context, num_steps, ceilings)
    settings: Settings = {"text": text, "text_window": text_window, "prompt": prompt, "memory_bytes": memory_bytes}
    record = {"config": configs_of(variants), "environment": session.environment}
    session.write_json("quantization.json", {**record, **settings})
    models = measure_models(session, held_out)
    if models.empty:
        session.conclude()
    engines, cases = measure_engines(session, memory_bytes, steps, start)
    study = serve(session, {arm: within(variants[arm], memory_bytes) for arm in serving}, sweep)
    notes = [] if reference is None else footprint_notes(models, **reference)
    notes += [f"Failed: {line}" for line in session.failures]
    figures = part_figures(models, cases, session.device_name)
    parts = Findings(figures, part_tables(models, engines, cases, settings), notes)
    if study is None:
        finish(session, f"quantization on {session.device_name}", parts)
    else:
        finish_sweep(study, "quantization", partial(find_serving, study, parts, engines, memory_bytes))
        session.adopt(study)
    session.conclude()


def find_serving(
    study: Study, parts: Findings, engines: pd.DataFrame, memory_bytes: int | None, points: pd.DataFrame
) -> Findings:
    """What serving shows, with the KV cache at the highest rate; its room comes before the other `parts`' tables."""
    serving = cache_figure(study, points, points["rate"].max()) | rate_figures(study, points)
    room = {f"Held and served: {memory(memory_bytes)}": room_table(engines, points)}
    return replace(parts, figures={**parts.figures, **serving}, tables={**room, **parts.tables})


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
    serving: list[str], arms: dict[str, Arm], rates: Rates, seeds: list[int], slo: dict[str, float]
) -> None:
    """What the last part would refuse, before the first one begins."""
    check_named("serving", serving, arms)
    check_slo(slo)
    if serving:
        check_points(arms, rates, seeds)
    for arm in serving:
        trace = arms[arm].trace
        trace(rate=rates_to_try(rates, trace, seeds[0])[0], seed=seeds[0])


def part_figures(models: pd.DataFrame, cases: pd.DataFrame, title: str) -> dict[str, Drawn]:
    """The figures of what was measured: none of a quality without a text, none of steps without batch sizes."""
    figures = {"quality_bytes": quality_bytes(models, title)} if "kl" in models else {}
    figures |= {} if cases.empty else {"decode_steps": decode_steps(cases, title)}
    return {name: (figure, CAPTIONS[name]) for name, figure in figures.items()}


def existing(text: str) -> Path:
    path = locate(text)
    if not path.is_file():
        raise ValueError(f"text={text} is no file: give a text, or null to measure no quality")
    return path
