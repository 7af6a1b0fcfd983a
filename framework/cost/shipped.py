"""Finds the cost model of an arm among files: the one that was measured with such a model, and was asked for."""

from dataclasses import dataclass
from pathlib import Path

from framework.cost.model import CostModel, read_cost_model
from framework.cost.subject import Subject
from framework.paths import ROOT

FOLDER = ROOT / "models" / "cost"
UNKNOWN = "unknown"  # the dtype of keys and values of a server that was logged elsewhere


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an arm asks of the measured engine; None: keys and values in the model's dtype, overlap as it was."""

    kv_dtype: str | None = None
    overlap: bool | None = None


AS_MEASURED = Options()


def choose_cost_model(subject: Subject, device: str | None, folder: Path, options: Options = AS_MEASURED) -> Path:
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
    others = {path: differences(model, subject, options) for path, model in of_device.items()}
    found = [path for path in of_device if not others[path]]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{path.name} ({of_device[path].device})" for path in found)
        raise ValueError(f"engine=modelled fits {names}: choose one with engine.device, engine.overlap or engine.path")
    if not of_device:
        devices = ", ".join(sorted({model.device for model in models.values()}))
        raise ValueError(f"engine.device={device}: no cost model is of such a device; those there are: {devices}")
    nearest = sorted(others, key=lambda path: len(others[path]))[:3]
    reasons = "; ".join(f"{of_device[path].name} has {', '.join(others[path][:3])}" for path in nearest)
    raise ValueError(f"engine=modelled: no cost model is of this arm ({reasons}). Make one with experiment=calibrate")


def check_cost_model(model: CostModel, subject: Subject, path: str, options: Options = AS_MEASURED) -> None:
    """ValueError naming both sides for a cost model of something else."""
    found = differences(model, subject, options)
    if found:
        raise ValueError(f"engine.path={path} is of another arm: it has {'; '.join(found)}")


def differences(model: CostModel, subject: Subject, options: Options) -> list[str]:
    """What the cost model was measured with otherwise, naming both sides."""
    found = model.subject.differences(subject)
    kv_dtype, does_overlap = model.engine.kv_dtype, model.engine.num_steps_ahead > 0
    wanted = subject.dtype if options.kv_dtype is None else options.kv_dtype
    if kv_dtype not in (wanted, UNKNOWN):
        found.append(f"kv_dtype {kv_dtype!r}, not {wanted!r}")
    if options.overlap is not None and options.overlap != does_overlap:
        found.append(f"overlap {does_overlap}, not {options.overlap}")
    return found
