"""Where a study runs, where it writes, and how it speaks."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from framework.build import resolve_device
from framework.paths import output_folder
from framework.study.progress import make_console, say, status
from framework.study.provenance import Environment, environment


@dataclass
class Place:
    """`environment` is what results depend on there: code, packages, the device."""

    device: torch.device
    output_dir: Path
    environment: Environment
    console: Console

    @property
    def device_name(self) -> str:
        return self.environment["device"]

    def say(self, line: str) -> None:
        say(self.console, line)

    def status(self, line: str) -> AbstractContextManager[Callable[[str], None]]:
        """While something takes long: `with place.status("loading") as update: … update("running")`."""
        return status(self.console, line)


def open_place(device: str, output_dir: str) -> Place:
    """`device` is auto, cpu or cuda. ValueError where nothing could be written; nothing is written yet."""
    resolved = resolve_device(device)
    return Place(resolved, output_folder(output_dir), environment(resolved), make_console())
