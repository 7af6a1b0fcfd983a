"""Capacity under a limit on the gaps between tokens, by scheduler: Fig. 10 to 12 of Sarathi-Serve (OSDI 2024)."""

from dataclasses import dataclass
from functools import partial

import pandas as pd
from typing_extensions import Unpack

from experiments.chunked_prefill.figures import over_rates
from experiments.papers.capacities import Goals, find_capacities
from experiments.papers.comparison import read_paper, with_comparison
from experiments.papers.figures import capacity_over_limits
from experiments.papers.step_times import decode_seconds, make_ready, timed
from experiments.papers.sustained import base_of
from framework.checks import positive, whole
from framework.measure.rates import aggregate
from framework.measure.slo import goals_of
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.study.arguments import Sweep
from framework.study.arms import Arm, parts_of, resolve_arms
from framework.study.engine_cache import EngineCache
from framework.study.place import Place, open_place
from framework.study.sweep import Study, run_study

PAPER = "sarathi_capacity"
OVER_LIMITS = "Capacity of every arm over the limit on the P99 gap, with its 95% interval; right: as the paper has it."
OVER_RATES = "TTFT, P99 of the gaps between tokens, and output throughput over the offered rate, a curve per arm."
CAPACITIES = "Capacity by the limit on the P99 gap between tokens"
DEFINITIONS = {
    "Capacity": "the highest offered rate at which the P99 of the gaps between tokens and the median scheduling delay "
    "are within their limits and waiting does not grow: where a logistic curve through the shares of all replays "
    "crosses the target (docs/method.md), with a 95% interval over seeds. What is in doubt says why",
    "Limit": "a multiple of the time on the device of the decode step that the notes name",
}


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """The step whose time limits are multiples of: `num_seqs` sequences with `context` tokens each, timed `num_steps`
    times.
    """

    num_seqs: int
    context: int
    num_steps: int

    def __post_init__(self) -> None:
        for name in ("num_seqs", "context", "num_steps"):
            whole(f"step.{name}", getattr(self, name))


def run(*, limits: list[float], delay: float, step: DecodeStep, clock: Clock, **sweep: Unpack[Sweep]) -> None:
    """Replay every arm at every rate, and find what each can serve within each of `limits` on the P99 gap.

    `limits`, and `delay` on the median scheduling delay, are multiples of the time of the decode step `step`. `rates`
    are multiples of what an arm serves at most; every rate needs two seeds at least.
    """
    for multiple in [*limits, delay]:
        positive("limits and delay", multiple)
    if not limits or len(sweep["seeds"]) < 2:
        raise ValueError(f"limits={limits} and seeds={sweep['seeds']}: give a limit and two seeds at least")
    base_of(sweep["rates"], pd.DataFrame({"rate": [1.0]}))
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"clock": clock})
    first = next(iter(arms.values()))
    seconds = time_step(first, step, open_place("cpu" if first.is_modelled else sweep["device"], sweep["output_dir"]))
    study = run_study(arms, sweep)
    finish_sweep(study, PAPER, partial(find, study, step, seconds, limits, delay))
    study.raise_failures()


def time_step(arm: Arm, step: DecodeStep, place: Place) -> float:
    """Seconds on the device of the decode step, on the arm's engine, which is gone when this returns."""
    with place.status("loading") as update:
        engine = timed(EngineCache(place.device, update).get(arm))
        make_ready(engine, step.num_seqs, 1)
        return decode_seconds(engine, step.num_seqs, step.context, step.num_steps)


def goals_at(limit: float, delay: float, seconds: float) -> Goals:
    """Of one limit: multiples of `seconds`."""
    return goals_of({"itl_p99": limit * seconds, "scheduling_delay_p50": delay * seconds})


def find(
    study: Study, step: DecodeStep, seconds: float, limits: list[float], delay: float, points: pd.DataFrame
) -> Findings:
    goals = {limit: goals_at(limit, delay, seconds) for limit in limits}
    rows = find_capacities(study, points, goals)
    by_case = {f"{row['arm']}, {row['limit']:g}×": row["capacity"] for row in rows.to_dict("records")}
    paper = read_paper(PAPER)
    gains = {
        case: by_case.get(f"{case.partition(' ÷ ')[0]}, {case.rpartition(', ')[2]}", float("nan"))
        / by_case.get(case.partition(" ÷ ")[2], float("nan"))
        for case in paper["quantities"]["gain"]["values"]
    }
    notes = [describe(step, seconds, limits, delay)]
    table = rows.assign(limit_ms=1e3 * seconds * rows["limit"]).rename(
        columns={
            "limit": "limit (× a decode step)",
            "limit_ms": "limit (ms)",
            "capacity": "capacity (req/s)",
            "low": "capacity (req/s)_low",
            "high": "capacity (req/s)_high",
        }
    )
    findings = Findings(
        {
            "capacity": (capacity_over_limits(rows, paper["quantities"]["capacity"]["values"]), OVER_LIMITS),
            "over_rates": (over_rates(aggregate(points)), OVER_RATES),
        },
        {CAPACITIES: table},
        notes,
        DEFINITIONS,
        {"capacities.csv": rows},
    )
    return with_comparison(PAPER, {"capacity": by_case, "gain": gains}, findings)


def describe(step: DecodeStep, seconds: float, limits: list[float], delay: float) -> str:
    """The limits in milliseconds, and the step that they are multiples of."""
    gaps = ", ".join(f"{1e3 * limit * seconds:.3g}" for limit in limits)
    return (
        f"a decode step of {step.num_seqs} sequences with {step.context:,} tokens each takes "
        f"{1e3 * seconds:.3g} ms on the device: limits on the P99 gap are {gaps} ms, that on the median scheduling "
        f"delay is {1e3 * delay * seconds:.3g} ms"
    )
