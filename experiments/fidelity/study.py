"""How far clocks and engines are from each other on the same requests, beside how far a repeat is from the next one.

One side is the reference, such as real time, and is repeated: an error within the spread of its repeats is none.
"""

from functools import partial
from typing import Any, NotRequired

import pandas as pd
from typing_extensions import Unpack

from experiments.fidelity.cells import Plan, check_plan, make_arms, overloaded, seconds_to_run
from experiments.fidelity.errors import AllGoals, errors, per_request
from experiments.fidelity.figures import figures_of
from experiments.fidelity.tables import DEFINITIONS, error_tables, notes_of, request_table
from framework.build import MakeRouter, MakeTrace
from framework.errors import StudyError
from framework.report.finish import Findings, finish_sweep
from framework.study.arguments import Replays, Serving, Tracker
from framework.study.arms import Arm, Arms, parts_of
from framework.study.auto_rates import Multiples, find_rates
from framework.study.engine_cache import EngineCache
from framework.study.progress import SweepProgress
from framework.study.sweep import Study, open_study, run_study


class Compared(Serving):
    """What the sides have in common, unless they or a cell change it, and at which loads they are compared.

    The capacity is what the side `capacity_of` (None: the `reference`) serves of an overload, by the virtual clock.
    What is executed is repeated. `only` these cells are replayed and compared (None: all); others stay in the folder.
    A cell or a side that is None is left out.
    """

    cells: dict[str, dict[str, Any] | None]
    sides: dict[str, dict[str, Any] | None]
    reference: str
    capacity_of: str | None
    only: list[str] | None
    loads: list[float]  # shares of the capacity
    seconds: float  # of arrivals
    repeats: int
    seed: int
    goals: AllGoals
    trace: MakeTrace
    slo: dict[str, float]  # metric → seconds
    servers: NotRequired[int]  # these three as in Traffic
    router: NotRequired[MakeRouter]
    view_delay: NotRequired[float]
    tracking: NotRequired[Tracker | None]
    fresh: bool


def run(**compared: Unpack[Compared]) -> None:
    """Replay every cell with every side at `loads` of its capacity, and compare the sides."""
    study, plan, capacities = replay_sides(compared)
    finish_sweep(study, "fidelity", partial(find, study, plan, capacities, compared["goals"]))
    study.raise_failures()


def replay_sides(compared: Compared) -> tuple[Study, Plan, dict[str, float]]:
    """A study with every point that could be computed, the plan, and each cell's capacity (requests/s)."""
    of_cells, of_sides = given(compared["cells"]), given(compared["sides"])
    only, capacity_of = compared["only"], compared["capacity_of"]
    plan = Plan(
        reference=compared["reference"],
        sides=[*of_sides],
        loads=compared["loads"],
        seconds=compared["seconds"],
        repeats=compared["repeats"],
        seed=compared["seed"],
    )
    check_plan(plan, of_cells, only, capacity_of)
    chosen = {name: components for name, components in of_cells.items() if only is None or name in only}
    arms = make_arms(plan, chosen, of_sides, {**parts_of(compared), "clock": "virtual"})
    sweep = Replays(
        model=compared["model"],
        engine=compared["engine"],
        device=compared["device"],
        output_dir=compared["output_dir"],
        trace=compared["trace"],
        rates=[],
        seeds=[],
        slo=compared["slo"],
        tracking=compared.get("tracking"),
        fresh=compared["fresh"],
    )
    study, capacities = replay_cells(plan, arms, sweep, capacity_of or plan.reference)
    return study, plan, capacities


def given(mapping: dict[str, dict[str, Any] | None]) -> Arms:
    return {name: components for name, components in mapping.items() if components is not None}


def replay_cells(
    plan: Plan, arms: dict[str, dict[str, Arm]], sweep: Replays, measured_side: str
) -> tuple[Study, dict[str, float]]:
    """A study of all arms, with every point that could be computed; and each cell's capacity (requests/s).

    StudyError if no cell has a point.
    """
    every = {name: arm for of_cell in arms.values() for name, arm in of_cell.items()}
    study = open_study(every, sweep)
    study.say(f"at most about {seconds_to_run(plan, every.values()):.0f} s of executed steps, if none is on disk yet")
    engines = EngineCache(study.device, study.say, every.values())
    capacities: dict[str, float] = {}
    problems: dict[str, list[str]] = {}  # message → the cells that failed with it
    for cell, of_cell in arms.items():
        try:
            capacities[cell] = measure_capacity(f"{cell}.{measured_side}", plan.seed, of_cell, sweep, engines)
            rates: list[float | None] = [rate_of(load, capacities[cell]) for load in plan.loads]
            for is_executed, num_repeats in ((True, plan.repeats), (False, 1)):
                some = {name: arm for name, arm in of_cell.items() if arm.is_modelled is not is_executed}
                if some:
                    part = Replays({**sweep, "rates": rates, "seeds": [*range(num_repeats)]})
                    study.failures.update(run_study(some, part, engines).failures)
        except StudyError as error:
            problems.setdefault(str(error), []).append(cell)
    told = [f"{', '.join(cells)}: {problem}" for problem, cells in problems.items()]
    if sum(map(len, problems.values())) == len(arms):
        raise StudyError("\n".join(told))
    study.failures.update({problem: [] for problem in told})
    return study, capacities


def rate_of(load: float, capacity: float) -> float:
    """Requests/s, to three digits."""
    return float(f"{load * capacity:.3g}")


def measure_capacity(name: str, seed: int, arms: dict[str, Arm], sweep: Replays, engines: EngineCache) -> float:
    """What the arm serves at most (requests/s) of an overload; measured once per folder."""
    study = open_study({name: overloaded(arms[name])}, sweep)
    with SweepProgress(study.console, 1) as progress:
        engines.on_progress = progress.say
        whole = Multiples(of=name, multiples=[1.0])
        [rate] = find_rates(study.output_dir, study.arms, study.arm_digests, seed, engines, progress, whole)
    if rate is None:
        raise ValueError(f"{name}: its requests come all at once, so there is no load to choose")
    return rate


def find(study: Study, plan: Plan, capacities: dict[str, float], goals: AllGoals, points: pd.DataFrame) -> Findings:
    placed = with_places(points, plan, capacities)
    found, requests = errors(placed, plan.reference, goals), requests_of(study, placed, plan.reference)
    return Findings(
        figures=figures_of(study, placed, found, plan),
        tables=error_tables(found) | request_table(requests),
        notes=notes_of(placed, found, plan, capacities, goals),
        definitions=DEFINITIONS,
        files={"errors.csv": found, "requests.csv": requests},
    )


def with_places(points: pd.DataFrame, plan: Plan, capacities: dict[str, float]) -> pd.DataFrame:
    """With the cell, side and load of each; without points of other loads that are in the folder."""
    parts = pd.DataFrame([arm.split(".") for arm in points["arm"]], columns=["cell", "side"])
    placed = pd.concat([points.reset_index(drop=True), parts], axis="columns")
    load_of = {(cell, rate_of(load, capacity)): load for cell, capacity in capacities.items() for load in plan.loads}
    placed["load"] = [load_of.get((cell, rate)) for cell, rate in zip(placed["cell"], placed["rate"], strict=True)]
    return placed[placed["load"].notna()].astype({"load": float})


def requests_of(study: Study, placed: pd.DataFrame, reference: str) -> pd.DataFrame:
    """One row per cell, load and other side: how far single requests are, where both sides have the point."""
    rows = []
    for (cell, load), group in placed.groupby(["cell", "load"], sort=False):
        tables = {side: requests_in(study, of_side) for side, of_side in group.groupby("side", sort=False)}
        for side in tables.keys() - {reference} if reference in tables else ():
            names = tuple(f"cells.{cell} at {load:g}: {one}" for one in (reference, side))
            found = per_request(tables[reference], tables[side], (names[0], names[1]))
            rows.append({"cell": cell, "load": load, "side": side} | found)
    return pd.DataFrame(rows)


def requests_in(study: Study, points: pd.DataFrame) -> list[pd.DataFrame]:
    return [pd.read_parquet(study.folder(point) / "requests.parquet") for point in points["point"]]
