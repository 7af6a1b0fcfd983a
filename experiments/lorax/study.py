"""Everything together (lesson 7): streams at once, many adapters, and what each technique contributes on a trace.

The ablation serves one trace with every combination of scheduler, precision and LoRA strategy, over arrival rates.
"""

from functools import partial

import pandas as pd
from typing_extensions import Unpack

from experiments.lora.tables import reference_notes
from experiments.lorax.ablation import (
    Axes,
    Corners,
    ablation_tables,
    check_corners,
    combine,
    contributions,
    describe_ablation,
    mean_output,
    name_of,
)
from experiments.lorax.figures import FACTORS, combination_curves, contribution_bars, stream_times
from experiments.lorax.streams import describe_streams, measure_streams, stream_tables
from framework.checks import whole
from framework.engine.measured import measured
from framework.measure.rates import aggregate
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep, write_files
from framework.report.plots import Figure
from framework.study.arguments import Replays
from framework.study.arms import Arm, parts_of, resolve_arms
from framework.study.engine_cache import EngineCache
from framework.study.files import locked
from framework.study.place import Place, open_place
from framework.study.sweep import Study, run_study

CAPTIONS = {
    "streams": "Left: time of every token of one stream alone. Right: every token of all streams, each with an "
    "adapter of its own, at once and one after the other, and how many they are. Medians over the repeats.",
    "contributions": "Left: the most output throughput from the naive corner to the full stack, one technique after "
    "the other; dashed: the full stack without adapters. Right: what each is worth alone over the naive corner, in "
    "turn, and last, over the full stack without it: geometric means over seeds, with 95% intervals.",
    "combinations": "Mean normalized latency over output throughput, one curve per LoRA strategy, one marker per rate.",
}

DEFINITIONS = {
    "Naive; full stack": "the options that the path of techniques begins with and ends with; the factors compare the "
    "highest output throughput over the rates",
    "Factor [low, high]": "computed per seed, where both arms serve the same requests; the geometric mean over "
    "seeds and its 95% interval (Student's t of the logarithms). A factor whose interval includes 1 is noise",
    "× naive": "a combination's highest output throughput / the naive one's",
    "Alone": "the naive combination with this technique / without it",
    "In turn": "with this technique and those above it / with those above it only",
    "Last": "the full stack / the full stack without this technique",
    "Tokens/s of a stream": "its tokens / (its arrival → its last token)",
}


def run(
    *,
    streams: list[int],
    num_prompt_tokens: int,
    num_repeats: int,
    axes: Axes,
    naive: list[str],
    full: list[str],
    ceiling: list[str],
    clock: Clock,
    **sweep: Unpack[Replays],
) -> None:
    """Time the `streams` (output tokens of each) on the full stack, then replay the trace with every combination.

    `axes` maps an axis to its options, and these to components. `naive`, `full` and `ceiling` are one option per axis:
    where the path of techniques begins and ends, and its end without adapters. `slo` is in seconds per metric.
    """
    corners = Corners(naive, full, ceiling)
    check_corners(corners, axes)
    check_streams(streams, num_prompt_tokens, num_repeats)
    arms = resolve_arms(combine(axes), parts_of(sweep) | {"clock": clock})
    place = open_place(sweep["device"], sweep["output_dir"])
    tokens = time_streams(arms[name_of(full)], streams, num_prompt_tokens, num_repeats, place)
    with locked(place.output_dir):
        write_files(place.output_dir, {"streams.csv": tokens})
    study = run_study(arms, sweep)
    finish_sweep(study, "lorax", partial(find, study, axes, corners, tokens))
    study.raise_failures()


def find(study: Study, axes: Axes, corners: Corners, tokens: pd.DataFrame, points: pd.DataFrame) -> Findings:
    loras = {name: arm.lora for name, arm in study.arms.items() if not arm.is_modelled}
    figures = ablation_figures(points, corners) | {"streams": stream_times(tokens, study.device_name)}
    streams = stream_tables(tokens)
    return Findings(
        figures={name: (figure, CAPTIONS[name]) for name, figure in figures.items()},
        tables=ablation_tables(points, axes, corners) | streams,
        notes=[
            *describe_streams(streams),
            *describe_ablation(points, corners),
            *reference_notes(loras, study.device),
        ],
        definitions=DEFINITIONS,
    )


def ablation_figures(points: pd.DataFrame, corners: Corners) -> dict[str, Figure]:
    """What each technique contributes, unless an arm on the path has failed; and every combination's curve."""
    techniques = contributions(points, corners)
    highest = float(mean_output(points, [name_of(corners.ceiling)]).iloc[0])
    curves = {"combinations": combination_curves(aggregate(points))}
    if highest == highest and techniques[list(FACTORS)].notna().all(axis=None):
        return {"contributions": contribution_bars(techniques, highest, "the full stack")} | curves
    return curves


def check_streams(streams: list[int], num_prompt_tokens: int, num_repeats: int) -> None:
    if len(streams) < 2 or min(streams) < 1:
        raise ValueError(f"streams must be two or more numbers of tokens from 1 on, not {streams}")
    whole("num_prompt_tokens", num_prompt_tokens)
    whole("num_repeats", num_repeats)


def time_streams(arm: Arm, streams: list[int], num_prompt_tokens: int, num_repeats: int, place: Place) -> pd.DataFrame:
    """As measure_streams, on an engine that is gone when this returns: the study's would have to fit beside it."""
    with place.status("streams") as update:
        engines = EngineCache(place.device, update)
        engine = measured(engines.get(arm))
        return measure_streams(engine, arm.scheduler, streams, num_prompt_tokens, num_repeats, update)
