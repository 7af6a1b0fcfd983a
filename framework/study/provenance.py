"""What a result depends on besides its config: code, packages, device."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

import torch

from framework.paths import ROOT

PACKAGES = ("torch", "transformers", "simpy", "hydra-core", "wandb", "numpy", "scipy", "pandas", "triton")

FRAMEWORK = ROOT / "framework"
# A replay runs through every room below measure/ in the import order, new ones included, and through what begins it.
# catalog.py is below too, but only has help texts.
NOT_MEASURING = ("catalog.py", "command_line.py", "measure/", "report/", "study/")
MEASURING = (
    "measure/gpu_state.py",
    "measure/replay_tables.py",
    "study/arms.py",
    "study/engine_cache.py",
    "study/load.py",
    "study/parts.py",
    "study/placed.py",
    "study/replay_point.py",
    "study/request_rows.py",
    "study/roles.py",
)
COMPUTING = ("engine/torch_engine", "kernels", "models", "lora", "quantization")
METRICS_SOURCES = (
    "measure/clients.py",
    "measure/intervals.py",
    "measure/metric.py",
    "measure/metrics.py",
    "measure/servers.py",
    "measure/slo.py",
    "measure/window.py",
)


class Environment(TypedDict):
    git_commit: str | None
    git_dirty: bool  # whether code or config had uncommitted changes
    code_version: str
    packages: dict[str, str | None]
    device: str
    device_type: str
    num_cores: int | None
    driver: str | None
    python: str
    platform: str


def environment(device: torch.device) -> Environment:
    """What a result on `device` depends on besides its config."""
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain", "--", "run.py", "conf", "experiments", "framework")),
        "code_version": code_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "device": device_name(device),
        "device_type": device.type,
        "num_cores": os.cpu_count(),
        "driver": driver_version() if device.type == "cuda" else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


@cache
def code_version() -> str:
    """Hash of the source that a replay runs through: neither captions nor help texts nor metrics are in it."""
    sources = [path.relative_to(FRAMEWORK).as_posix() for path in FRAMEWORK.rglob("*.py")]
    return hash_of(source for source in sources if source in MEASURING or not source.startswith(NOT_MEASURING))


@cache
def compute_version() -> str:
    """Hash of the source that computes steps on a device: a cost model is of one such version."""
    paths = [path for room in COMPUTING for path in (FRAMEWORK / room).rglob("*.py")]
    return hash_of(path.relative_to(FRAMEWORK).as_posix() for path in paths)


@cache
def metrics_version() -> str:
    """Hash of the source that makes a point's metrics of its tables."""
    return hash_of(METRICS_SOURCES)


def hash_of(sources: Iterable[str]) -> str:
    """Of these files of the framework, names and content."""
    digest = hashlib.sha256()
    for source in sorted(sources):
        digest.update(source.encode() + b"\0" + (FRAMEWORK / source).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name()


@cache
def cpu_name() -> str:
    """The processor's marketing name where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def driver_version() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None  # not every container that has a GPU has the tool


@cache
def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git(*arguments: str) -> str | None:
    """Output of a git command in the project; None where the project is no git checkout."""
    try:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
