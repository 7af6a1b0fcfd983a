"""Static against continuous batching over arrival rates (Orca, OSDI 2022; lesson 3 of "Efficiently Serving LLMs")."""

from functools import partial

import pandas as pd
from typing_extensions import TypedDict, Unpack

from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.report.sweep_plots import sweep_figures
from framework.study.arguments import Sweep
from framework.study.arms import parts_of, resolve_arms
from framework.study.sweep import Study, run_study


class Reference(TypedDict):
    """How much longer the first arm took than the second, in some source."""

    arms: list[str]
    ratio: float
    source: str


def run(*, clock: Clock, reference: Reference | None = None, **sweep: Unpack[Sweep]) -> None:
    """Replay every arm at every rate (requests/s; null: as recorded) and draw latency against throughput and rate.

    The `reference`'s ratio of two arms' durations is printed beside the measured one.
    """
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"clock": clock})
    study = run_study(arms, sweep)
    finish_sweep(study, "continuous_batching", partial(find, study, reference))
    study.raise_failures()


def find(study: Study, reference: Reference | None, points: pd.DataFrame) -> Findings:
    notes = [] if reference is None else compare_durations(points, **reference)
    return Findings(sweep_figures(study, points), notes=notes)


def compare_durations(points: pd.DataFrame, arms: list[str], ratio: float, source: str) -> list[str]:
    """How much longer the first arm took than the second, where both have a point, beside the source's number."""
    durations = points.pivot_table(index=["rate", "seed"], columns="arm", values="duration_s").T
    missing = [arm for arm in arms if arm not in durations.index]
    if missing:
        raise ValueError(f"reference.arms names {', '.join(missing)}; arms with points: {', '.join(durations.index)}")
    both = durations.loc[arms].dropna(axis="columns")
    if both.empty:
        return [f"{arms[0]} and {arms[1]} have no point in common"]
    slow, fast = both.mean(axis="columns")
    measured = f"{arms[0]} ÷ {arms[1]}: {slow:.2f} s ÷ {fast:.2f} s = {slow / fast:.2f}×"
    return [f"{measured}   (reported: {ratio:g}×, {source})"]
