"""Whether an adapter belongs to the served model, by their names: shapes do not tell a family's models apart."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from framework.checks import shown
from framework.paths import ROOT, locate

IN_HUB_CACHE = re.compile(r"models--([\w.-]+)/snapshots/[^/]+/?$")
ON_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # ORG/NAME


def base_name(checkpoint: str) -> str:
    """What an adapter's file says of the model in this folder: ORG/NAME, a path in the repository, or another."""
    cached = IN_HUB_CACHE.search(checkpoint)
    if cached:
        return cached[1].replace("--", "/")
    folder = Path(checkpoint).resolve()
    return str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else str(folder)


def check_base(adapter_id: str, named: str, checkpoint: str | None) -> None:
    """ValueError if `named`, the adapter's base model, is surely another than the one from the folder `checkpoint`.

    Sure are two names of the hub, and two folders that are here, whose last components differ. A name of the hub
    against a folder is a warning only: PEFT writes whatever path the base was loaded from, the folder may be a copy of
    that model under a name of its own, and to refuse it would be wrong. A last component that is the same is taken for
    a copy or a mirror. Nothing is compared where the adapter names none, or the served weights are random.
    """
    if not named or checkpoint is None:
        return
    base, served = base_name(named) if IN_HUB_CACHE.search(named) else named, base_name(checkpoint)
    is_here, is_same = is_folder(base), Path(base).name.lower() == Path(served).name.lower()
    if is_same or (is_here and locate(base).resolve() == locate(served).resolve()):
        return
    is_served_here = is_folder(served)
    if is_here == is_served_here and (is_here or ON_HUB.fullmatch(base)):
        raise ValueError(
            f"adapter {adapter_id!r} belongs to another base model: {shown(base)}, and {served!r} is served; if they "
            "are the same, say so in its adapter_config.json (base_model_name_or_path)"
        )
    warnings.warn(
        f"adapters of the base model {shown(base)} are served on {served!r}; "
        "their names do not tell whether it is a copy",
        stacklevel=2,
    )


def is_folder(path: str) -> bool:
    try:
        return locate(path).is_dir()
    except OSError:  # too long a name for a file system
        return False
