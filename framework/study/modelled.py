"""Arms whose steps are not executed: the cost model that each takes, and what results are labelled with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from framework.config import describe, with_keywords
from framework.cost.model import WITHIN, CostModel, read_cost_model
from framework.cost.shipped import FOLDER, Options, check_cost_model, choose_cost_model
from framework.cost.subject import read_target
from framework.engine.modelled import ModelledEngine
from framework.paths import ROOT, locate
from framework.study.provenance import Environment, compute_version
from framework.study.recorded import record_of, with_record
from framework.study.records import ModelledRecord, Number

if TYPE_CHECKING:  # which call the functions here
    from framework.build import MakeEngine
    from framework.study.arms import Arm
    from framework.study.roles import Group

    Timed = TypeVar("Timed", Arm, Group)


def with_times(name: str, arm: Timed) -> Timed:
    """The same, with the cost model or the record that it takes its times from.

    Raises ValueError naming the arm for one that is not of it, and for the wall clock.
    """
    return replace(arm, engine=with_record(name, arm) if arm.is_recorded else with_cost_model(name, arm))


def with_cost_model(name: str, arm: Arm | Group) -> MakeEngine:
    engine = describe(arm.engine)
    try:
        if arm.clock == "wall":
            raise ValueError("clock=wall is real time, and engine=modelled executes nothing: take clock=virtual")
        subject = read_target(arm.config).subject
        options = Options(kv_dtype=engine["kv_dtype"], overlap=engine["overlap"])
        given = None if engine["path"] is None else locate(engine["path"])
        if given is not None and not given.is_dir():
            check_cost_model(read_cost_model(given), subject, engine["path"], options)
            return arm.engine
        path = choose_cost_model(subject, engine["device"], given or FOLDER, options)
    except ValueError as error:
        raise ValueError(f"arms.{name}: {error}") from error
    return with_keywords(arm.engine, path=shown_path(path))


def shown_path(path: Path) -> str:
    """From the repository's folder, so that a config means the same wherever that is."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def cost_model_of(arm: Arm | Group) -> CostModel:
    return read_cost_model(locate(describe(arm.engine)["path"]))


def environment_of(arm: Arm, here: Environment) -> Environment:
    """What the arm's results depend on: of a modelled one neither torch nor the device at hand."""
    if not arm.is_modelled:
        return here
    label = "recorded" if arm.is_recorded else "modelled"
    devices = [record_of(arm.config).device] if arm.is_recorded else [cost_model_of(one).device for one in arm.groups]
    device = " and ".join(dict.fromkeys(devices))
    packages = here["packages"] | {"torch": None}
    return {**here, "device": f"{device} ({label})", "device_type": label, "packages": packages}


def modelled_record(engines: list[ModelledEngine]) -> ModelledRecord:
    """Of a replay's servers, afterwards."""
    costs, outsides = [engine.cost for engine in engines], [engine.outside for engine in engines]
    commits = [cost.environment.get("git_commit") for cost in costs]
    names = dict.fromkeys(name for outside in outsides for name in outside.furthest)
    return {
        "name": " and ".join(dict.fromkeys(cost.name for cost in costs)),
        "device": " and ".join(dict.fromkeys(cost.device for cost in costs)),
        "git_commit": " and ".join(dict.fromkeys(commit for commit in commits if commit is not None)) or None,
        "is_older": any(cost.compute_version != compute_version() for cost in costs),
        "num_steps": sum(outside.num_steps for outside in outsides),
        "num_outside": sum(outside.num_outside for outside in outsides),
        "furthest": {name: max(outside.furthest.get(name, WITHIN) for outside in outsides) for name in names},
        "notes": list(dict.fromkeys(note for cost in costs for note in cost.notes)),
        "error": furthest_off(costs),
    }


def furthest_off(costs: list[CostModel]) -> dict[str, Number]:
    """Of each error on steps that were not fitted, that of the cost model where it is the furthest from 0."""
    found: dict[str, Number] = {}
    for cost in costs:
        for name, value in cost.error.get("all", {}).items():
            if value is not None and abs(value) >= abs(found.get(name) or 0.0):
                found[name] = value
    return found
