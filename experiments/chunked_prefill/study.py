"""Prompts in chunks beside decodes (Sarathi-Serve, OSDI 2024): five schedulers over rates, chunks' cost, one stall."""

from functools import partial
from math import inf

import pandas as pd
from typing_extensions import Unpack

from experiments.chunked_prefill.figures import beside_reported, chunk_overhead, over_rates, stall_timeline
from experiments.chunked_prefill.overhead import Ratios, check_ratios, measure_overhead, overhead_table, reported_chunks
from experiments.chunked_prefill.stall import Stall, describe_stall, measure_stall, stall_table, typical
from experiments.chunked_prefill.tables import (
    MAX_DELAY,
    Latencies,
    against_first,
    check_latencies,
    describe_rates,
    latencies_table,
    limits_table,
)
from framework.checks import positive
from framework.engine.measured import measured
from framework.measure.mixed_steps import check_comparisons, check_graphs, most_seqs
from framework.measure.rates import aggregate
from framework.measure.serving import max_num_seqs_of
from framework.measure.slo import check_slo
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep, write_files
from framework.report.plots import Drawn
from framework.report.rate_plots import rate_figures
from framework.study.arguments import Sweep, check_points
from framework.study.arms import Arm, parts_of, resolve_arms
from framework.study.engine_cache import EngineCache
from framework.study.files import locked
from framework.study.place import Place, open_place
from framework.study.sweep import Study, run_study

OVER_RATES = "TTFT, P99 of the gaps between tokens, and output throughput over the offered rate, a curve per scheduler."
OVERHEAD = "Time on the device of a prompt in chunks over that of one step (1, dashed), over its length. Dotted: as "
OVERHEAD += "reported by {}."
STALL = "Gaps between the tokens of {} sequences that decode when a prompt of {:,} tokens arrives, by scheduler. "
STALL += "The grey span ends with the prompt's first token. Of {} repeats, the one with the median longest gap."
REPORTED = "Latencies over those of {}, and in seconds. Dotted: as reported by {}."
NOT_TIMED = "neither chunks nor mixed steps are timed apart, nor a stall, since no step is executed: {}"
DEFINITIONS = {
    "A in chunks of B": "a prompt of A tokens, computed B tokens at a time, nothing beside it",
    "mixed A behind B + C × D": "a step with the last A tokens of a prompt, B cached ones before them, and C decodes "
    "with a context of D tokens each; against a prompt of as many tokens as it has rows",
    "Measured": "of chunks and mixed steps: time on the device of these steps / of one step of a prompt alone",
    "Longest gap meanwhile": "of the gaps between tokens that end after the long prompt's arrival and begin before its "
    "first token",
    "Highest rate within a limit": "as Sarathi counts capacity: P99 ITL within the limit, and a median of "
    f"{MAX_DELAY:g} s at most from a request's arrival to its first step",
    "Same quantity": "whether the source's number is defined as the one beside it. Where models and devices differ, "
    "shapes and ratios compare, times do not",
}
Measured = tuple[pd.DataFrame, pd.DataFrame]  # chunks and mixed steps; the tokens of a stall


def run(
    *,
    chunks: list[list[int]],
    mixed: list[list[int]],
    num_steps: int,
    stall: Stall | None,
    itl_limits: list[float],
    reported_ratios: Ratios,
    reported_latencies: Latencies,
    source: str,
    clock: Clock,
    **sweep: Unpack[Sweep],
) -> None:
    """Time `chunks` and `mixed` steps (as mixed_steps.FORMS names them) and a stall, then replay the trace at `rates`.

    The first arm is the one that the others are compared with. `itl_limits` (s) are on the P99 ITL. Where `source`
    reports a ratio of such steps, or a latency (s) of an arm, it stands beside the measured one. With an arm that is
    modelled there are only replays.
    """
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"clock": clock})
    modelled = [name for name, arm in arms.items() if arm.is_modelled]
    if modelled:
        mixed, chunks, stall = [], [], None
    sizes = {"mixed": mixed, "chunks": chunks}
    check_parts(arms, sizes, num_steps, stall, itl_limits)
    check_ratios(reported_ratios)
    check_latencies(reported_latencies, list(arms))
    check_points(arms, sweep["rates"], sweep["seeds"])
    check_slo(sweep["slo"])
    place = open_place(sweep["device"], sweep["output_dir"])
    overhead, tokens = measure_parts(arms, sizes, num_steps, stall, place)
    measured_files = {"overhead.csv": overhead, "stall.csv": tokens}
    with locked(place.output_dir):
        write_files(place.output_dir, {name: table for name, table in measured_files.items() if not table.empty})
    study = run_study(arms, sweep)
    parts = [
        Findings() if stall is None else find_stall(place, stall, tokens),
        find_steps(place, overhead, reported_ratios, source),
        Findings(notes=[NOT_TIMED.format(", ".join(modelled))] if modelled else []),
    ]
    finish_sweep(study, "chunked_prefill", partial(find, study, itl_limits, reported_latencies, source, parts))
    study.raise_failures()


def check_parts(
    arms: dict[str, Arm], sizes: dict[str, list[list[int]]], num_steps: int, stall: Stall | None, limits: list[float]
) -> None:
    """ValueError for what any part would refuse, before the first one begins."""
    check_comparisons(sizes, num_steps)
    for index, (name, arm) in enumerate(arms.items()):  # steps are timed on the first one's engine
        mixed = [] if index else sizes["mixed"]
        check_graphs(arm.engine, arm.model, arm.scheduler, mixed, f"arms.{name}.scheduler")
    if stall is not None:
        stall.check(arms)
    for limit in limits:
        positive("itl_limits", limit)


def measure_parts(
    arms: dict[str, Arm], sizes: dict[str, list[list[int]]], num_steps: int, stall: Stall | None, place: Place
) -> Measured:
    """What is timed before the replays, on an engine that is gone when this returns: theirs have to fit."""
    overhead, tokens = pd.DataFrame(), pd.DataFrame()
    with place.status("loading") as update:
        engines = EngineCache(place.device, update)
        if any(sizes.values()):
            first = next(iter(arms.values()))
            num_seqs = max(most_seqs(sizes), max_num_seqs_of(first.scheduler))  # of the stall, too: warm once
            overhead = measure_overhead(measured(engines.get(first)), sizes, num_steps, num_seqs, place.say)
        if stall is not None:
            tokens = measure_stall(stall, arms, engines)
    return overhead, tokens


def find_steps(place: Place, overhead: pd.DataFrame, reported: Ratios, source: str) -> Findings:
    """What chunks and mixed steps cost."""
    if overhead.empty:
        return Findings()
    figures: dict[str, Drawn] = {}
    in_chunks = overhead[overhead["kind"] == "chunks"]
    if not in_chunks.empty:
        drawn = chunk_overhead(in_chunks, reported_chunks(reported), place.device_name)
        figures["chunk_overhead"] = (drawn, OVERHEAD.format(source))
    caption = "Chunks and mixed steps over one step of a prompt alone"
    return Findings(figures, {caption: overhead_table(overhead, reported)})


def find_stall(place: Place, stall: Stall, tokens: pd.DataFrame) -> Findings:
    """What becomes of decodes when a long prompt arrives."""
    table = stall_table(tokens)
    caption = STALL.format(stall.num_decodes, stall.num_prompt_tokens, stall.num_repeats)
    title = f"a prompt of {stall.num_prompt_tokens:,} tokens beside {stall.num_decodes} decodes, {place.device_name}"
    drawn = stall_timeline(typical(tokens), title)
    return Findings(
        {"stall": (drawn, caption)}, {"One long prompt among decodes": table}, notes=describe_stall(stall, table)
    )


def find(
    study: Study, limits: list[float], reported: Latencies, source: str, parts: list[Findings], points: pd.DataFrame
) -> Findings:
    """What the schedulers do over the rates, and then the `parts`."""
    summary = aggregate(points)
    tables = {"Every scheduler against the first": against_first(summary)}
    if limits and (points["offered_rate"] < inf).any():
        tables["Highest rate (req/s) within a limit"] = limits_table(study, points, limits)
    figures: dict[str, Drawn] = {}
    is_at_several = len(set(points["rate"])) > 1
    if is_at_several:
        figures["over_rates"] = (over_rates(summary), OVER_RATES)
    if reported:
        latencies = latencies_table(summary, reported)
        tables[f"As reported (s): {source}"] = latencies
        if not is_at_several:
            first = next(iter(reported))
            figures["reported"] = (beside_reported(latencies, first), REPORTED.format(first, source))
    for part in parts:
        figures |= part.figures
        tables |= part.tables
    notes = [*describe_rates(summary), *(note for part in parts for note in part.notes)]
    return Findings(figures | rate_figures(study, points), tables, notes, DEFINITIONS)
