"""What a result depends on besides its config: code, packages, device."""

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from framework.paths import ROOT

PACKAGES = ("torch", "transformers", "simpy", "hydra-core", "wandb", "numpy", "scipy", "pandas", "triton")


def environment(device: torch.device) -> dict[str, Any]:
    """Git commit, hash of the source, package versions, device, driver and platform, as JSON-ready data."""
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
    """Hash of the framework's source, so that an edit of a README or a test redoes nothing."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "framework").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
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
