"""Arms whose steps are not executed: the cost model that each takes, and what results are labelled with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from framework.config import describe, with_keywords
from framework.cost.model import WITHIN, CostModel, read_cost_model
from framework.cost.shipped import FOLDER, Options, check_cost_model, choose_cost_model
from framework.cost.subject import read_target
from framework.engine.modelled import ModelledEngine
from framework.paths import ROOT, locate
from framework.study.provenance import Environment, compute_version
from framework.study.recorded import record_of, with_record
from framework.study.records import ModelledRecord

if TYPE_CHECKING:  # which calls the functions here
    from framework.study.arms import Arm


def with_cost_models(arms: dict[str, Arm]) -> dict[str, Arm]:
    """The same arms, where each that is modelled names its cost model, and each that is recorded its record's content.

    Raises ValueError naming the arm for a cost model or a record that is not of it, and for the wall clock.
    """
    return {name: with_times(name, arm) if arm.is_modelled else arm for name, arm in arms.items()}


def with_times(name: str, arm: Arm) -> Arm:
    return with_record(name, arm) if arm.is_recorded else with_cost_model(name, arm)


def with_cost_model(name: str, arm: Arm) -> Arm:
    engine = describe(arm.engine)
    try:
        if arm.clock == "wall":
            raise ValueError("clock=wall is real time, and engine=modelled executes nothing: take clock=virtual")
        subject = read_target(arm.config).subject
        options = Options(kv_dtype=engine["kv_dtype"], overlap=engine["overlap"])
        given = None if engine["path"] is None else locate(engine["path"])
        if given is not None and not given.is_dir():
            check_cost_model(read_cost_model(given), subject, engine["path"], options)
            return arm
        path = choose_cost_model(subject, engine["device"], given or FOLDER, options)
    except ValueError as error:
        raise ValueError(f"arms.{name}: {error}") from error
    return replace(arm, engine=with_keywords(arm.engine, path=shown_path(path)))


def shown_path(path: Path) -> str:
    """From the repository's folder, so that a config means the same wherever that is."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def cost_model_of(arm: Arm) -> CostModel:
    return read_cost_model(locate(describe(arm.engine)["path"]))


def environment_of(arm: Arm, here: Environment) -> Environment:
    """What the arm's results depend on: of a modelled one neither torch nor the device at hand."""
    if not arm.is_modelled:
        return here
    label = "recorded" if arm.is_recorded else "modelled"
    device = record_of(arm.config).device if arm.is_recorded else cost_model_of(arm).device
    packages = here["packages"] | {"torch": None}
    return {**here, "device": f"{device} ({label})", "device_type": label, "packages": packages}


def modelled_record(engines: list[ModelledEngine]) -> ModelledRecord:
    """Of a replay's servers, afterwards."""
    cost, outsides = engines[0].cost, [engine.outside for engine in engines]
    names = dict.fromkeys(name for outside in outsides for name in outside.furthest)
    return {
        "name": cost.name,
        "device": cost.device,
        "git_commit": cost.environment.get("git_commit"),
        "is_older": cost.compute_version != compute_version(),
        "num_steps": sum(outside.num_steps for outside in outsides),
        "num_outside": sum(outside.num_outside for outside in outsides),
        "furthest": {name: max(outside.furthest.get(name, WITHIN) for outside in outsides) for name in names},
        "notes": list(cost.notes),
        "error": dict(cost.error["all"]) if "all" in cost.error else {},
    }
