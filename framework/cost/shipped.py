"""Finds the cost model of an arm among files: the one that was measured with such a model, and was asked for."""

from pathlib import Path

from framework.cost.model import CostModel, read_cost_model
from framework.cost.subject import Subject
from framework.paths import ROOT

FOLDER = ROOT / "models" / "cost"


def choose_cost_model(subject: Subject, device: str | None, folder: Path) -> Path:
    """The only file of `folder` that is of `subject`, on a device whose name has `device` in it (None: any).

    Raises ValueError where there is none, saying what the nearest ones have otherwise, or where there are several.
    """
    models = {path: read_cost_model(path) for path in sorted(folder.glob("*.json"))}
    if not models:
        raise ValueError(
            f"engine=modelled: there is no cost model in {folder}: make one with experiment=calibrate, and name it "
            "with engine.path"
        )
    of_device = {path: model for path, model in models.items() if device is None or device in model.device}
    found = [path for path, model in of_device.items() if model.subject == subject]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{path.name} ({of_device[path].device})" for path in found)
        raise ValueError(f"engine=modelled fits {names}: choose one with engine.device or engine.path")
    if not of_device:
        devices = ", ".join(sorted({model.device for model in models.values()}))
        raise ValueError(f"engine.device={device}: no cost model is of such a device; those there are: {devices}")
    nearest = sorted(of_device.values(), key=lambda model: len(model.subject.differences(subject)))[:3]
    reasons = "; ".join(f"{model.name} has {', '.join(model.subject.differences(subject)[:3])}" for model in nearest)
    raise ValueError(f"engine=modelled: no cost model is of this arm ({reasons}). Make one with experiment=calibrate")


def check_cost_model(model: CostModel, subject: Subject, path: str) -> None:
    """ValueError naming both sides for a cost model of something else."""
    if model.subject != subject:
        raise ValueError(
            f"engine.path={path} is of another arm: it has {'; '.join(model.subject.differences(subject))}"
        )
