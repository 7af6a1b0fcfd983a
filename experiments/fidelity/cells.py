"""What is replayed: cells × sides as arms, at loads that are shares of each cell's capacity.

A side is a clock or an engine; the sides of a cell are offered the same requests. An arm is CELL.SIDE. Its repeats have
the same requests too: they are the sweep's seeds.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from framework.build import MakeTrace
from framework.checks import positive, shown, whole
from framework.config import describe, suggest, with_keywords
from framework.core import Trace
from framework.measure.serving import max_num_seqs_of
from framework.study.arms import COMPONENTS, OPTIONAL, Arm, Arms, resolve_arms
from framework.study.auto_rates import NUM_ROUNDS
from framework.study.parts import resolve_component


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The sides of every cell, the one that the others are compared with, and the loads.

    `repeats` are of what is executed; what follows from a file is replayed once. A replay has `seconds` of arrivals,
    drawn with `seed`.
    """

    reference: str
    sides: list[str]
    loads: list[float]
    seconds: float
    repeats: int
    seed: int

    @property
    def others(self) -> list[str]:
        return [side for side in self.sides if side != self.reference]


def check_plan(plan: Plan, cells: Mapping[str, object], only: list[str] | None, capacity_of: str | None) -> None:
    """ValueError for what cannot be compared."""
    for key, names in (("cells", cells), ("sides", plan.sides)):
        for name in names:
            if not re.fullmatch(r"[\w+-]+", name):
                raise ValueError(f"{key} has {shown(name)}, a part of a folder's name: use letters, digits, _, + and -")
    if len(plan.sides) < 2:
        raise ValueError(f"sides are {', '.join(plan.sides) or 'none'}: two at least can be compared")
    if not cells:
        raise ValueError("cells is empty: name one at least")
    for key, side in (("reference", plan.reference), ("capacity_of", capacity_of)):
        if side is not None and side not in plan.sides:
            raise ValueError(f"{key}={side} is none of the sides{suggest(side, plan.sides)}")
    for cell in only or ():
        if cell not in cells:
            raise ValueError(f"only has {cell!r}, which is no cell{suggest(cell, cells)}")
    if not plan.loads or sorted(set(plan.loads)) != plan.loads:
        raise ValueError(f"loads={plan.loads}: give shares of the capacity, each once and in order")
    for load in plan.loads:
        positive("loads", load)
    positive("seconds", plan.seconds)
    whole("repeats", plan.repeats)


def make_arms(plan: Plan, cells: Arms, sides: Arms, defaults: Mapping[str, Any]) -> dict[str, dict[str, Arm]]:
    """Per cell, its arms by their names. A cell changes what its sides leave.

    Raises ValueError as `resolve_arms` does, where a cell and a side both replace a component, and where two sides of a
    cell have different traces.
    """
    made: dict[str, dict[str, Arm]] = {}
    for cell, components in cells.items():
        of_side = {}
        for side, changes in sides.items():
            for name in changes.keys() & components.keys():
                if not isinstance(components[name], dict):
                    raise ValueError(f"cells.{cell} and sides.{side} both replace the {name}")
            names, place = COMPONENTS + OPTIONAL, f"arms.{side}"
            resolved = {name: resolve_component(place, name, value, defaults, names) for name, value in changes.items()}
            of_side[side] = resolve_arms({f"{cell}.{side}": components}, {**defaults, **resolved})[f"{cell}.{side}"]
        check_same_trace(cell, plan.reference, of_side)
        made[cell] = {f"{cell}.{side}": replace(arm, trace=for_repeats(plan, arm)) for side, arm in of_side.items()}
    return made


def for_repeats(plan: Plan, arm: Arm) -> MakeTrace:
    return partial(lasting, trace=arm.trace, seconds=plan.seconds, trace_seed=plan.seed)


def check_same_trace(cell: str, reference: str, of_side: dict[str, Arm]) -> None:
    """ValueError, naming both sides, where one has another trace than the reference."""
    expected = describe(of_side[reference].trace)
    for side, arm in of_side.items():
        found = describe(arm.trace)
        for key in expected.keys() | found.keys():
            if expected.get(key) != found.get(key):
                values = f"{shown(expected.get(key))} and {shown(found.get(key))}"
                raise ValueError(
                    f"cells.{cell}: sides {reference} and {side} replay different traces: {key} is {values}"
                )


def lasting(*, trace: MakeTrace, seconds: float, trace_seed: int, rate: float, seed: int) -> Trace:
    """The first requests of `trace` at `rate`, so many that they arrive in about `seconds`; `seed` is the repeat."""
    return with_keywords(trace, num_requests=max(2, round(rate * seconds)))(rate=rate, seed=trace_seed)


def overloaded(arm: Arm) -> Arm:
    """The same with requests of its own trace for every seat several times, whatever the seconds."""
    num_requests = NUM_ROUNDS * max_num_seqs_of(arm.scheduler)
    return replace(arm, trace=with_keywords(arm.trace.keywords["trace"], num_requests=num_requests))


def seconds_to_run(plan: Plan, arms: Iterable[Arm]) -> float:
    """At most about so many seconds of steps: a load of less keeps a server busy too, a modelled one none."""
    loads = [max(1.0, load) for load in plan.loads]
    return sum(plan.seconds * plan.repeats * sum(loads) for arm in arms if not arm.is_modelled)
