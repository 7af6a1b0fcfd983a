"""Adapters in PEFT's file format, or drawn at random: each becomes rows of a Layout, with its scaling in B.

What would change the arithmetic and is not implemented is refused by name. LoRA is arXiv:2106.09685.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from framework.lora.base_model import base_name, check_base
from framework.lora.layout import Layout
from framework.paths import locate

CONFIG_FILE, WEIGHT_FILE = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
# Options of PEFT's LoraConfig that say nothing about the arithmetic, and those that are read here
HARMLESS = {
    *("auto_mapping", "exclude_modules", "fan_in_fan_out", "inference_mode"),
    *("init_lora_weights", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_version"),
    *("revision", "runtime_config", "target_modules", "task_type", "qalora_group_size", "ensure_weight_tying"),
    *("eva_config", "loftq_config"),
}
READ = {"peft_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "bias"}
# Initialisations after which the base model's weights are others than the checkpoint's
CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
NOISE_STD = 0.02
NUM_OFFSETS = 2**22  # places in the noise where a random adapter may begin


class AdapterSource(Protocol):
    """Where adapters come from, by their id."""

    def names(self, num_adapters: int) -> list[str]:
        """The ids of its first `num_adapters` adapters; ValueError if it has fewer."""

    def check(self, adapter_id: str, layout: Layout) -> int:
        """The adapter's rank; ValueError naming the adapter if it cannot be loaded."""

    def load(self, adapter_id: str, layout: Layout, dtype: torch.dtype) -> Tensor:
        """(rank, width) on the host, as `layout` says; B transposed and multiplied by the adapter's scaling."""


class SavedAdapters:
    """Folders in PEFT's format: that of an adapter is `path`/id."""

    def __init__(self, *, path: str) -> None:
        self.path = locate(path)
        if not self.path.is_dir():
            raise ValueError(f"adapters.path={path!r} is no folder, neither from here nor in the repository")

    def names(self, num_adapters: int) -> list[str]:
        """In the order of their names, where adapter-2 comes before adapter-10."""
        found = sorted((file.parent.name for file in self.path.glob(f"*/{CONFIG_FILE}")), key=_in_counting_order)
        if len(found) < num_adapters:
            there = f": {', '.join(found)}" if found else ""
            raise ValueError(f"{num_adapters} adapters are asked for, and {self.path} has {len(found)}{there}")
        return found[:num_adapters]

    def check(self, adapter_id: str, layout: Layout) -> int:
        """Reads the file once: an infinite number would be seen only in the tokens."""
        return check_adapter(self._folder(adapter_id), layout)

    def load(self, adapter_id: str, layout: Layout, dtype: torch.dtype) -> Tensor:
        return load_adapter(self._folder(adapter_id), layout, dtype)

    def _folder(self, adapter_id: str) -> Path:
        folder = self.path / adapter_id
        if not (folder / CONFIG_FILE).is_file():
            raise ValueError(f"there is no adapter {adapter_id!r}: {folder} holds no {CONFIG_FILE}")
        return folder


class RandomAdapters:
    """An adapter for every id, cut from one pool of normal(0, 0.02) noise: thousands take no more memory than one.

    An adapter's rank, one of `ranks`, and its numbers depend on `seed` and its id alone.
    """

    def __init__(self, *, ranks: list[int], seed: int = 0) -> None:
        if not ranks or min(ranks) < 1:
            raise ValueError(f"ranks {ranks} must be whole numbers of at least 1")
        self.ranks, self.seed = ranks, seed
        self._noise: dict[tuple[int, torch.dtype], Tensor] = {}  # (width, dtype) → the pool

    def names(self, num_adapters: int) -> list[str]:
        return [f"adapter-{index}" for index in range(num_adapters)]

    def check(self, adapter_id: str, layout: Layout) -> int:
        return self.ranks[self._hash(adapter_id) % len(self.ranks)]

    def load(self, adapter_id: str, layout: Layout, dtype: torch.dtype) -> Tensor:
        rank = self.check(adapter_id, layout)
        start = 16 * (self._hash(f"{adapter_id} starts") % (NUM_OFFSETS // 16))
        rows = self._pool(layout, dtype)[start : start + rank * layout.width].view(rank, layout.width)
        if all(all(projection.has_adapter) for projection in layout.projections):
            return rows
        rows = rows.clone()
        layout.clear_others(rows)
        return rows

    def _pool(self, layout: Layout, dtype: torch.dtype) -> Tensor:
        key = (layout.width, dtype)
        if key not in self._noise:
            size = NUM_OFFSETS + max(self.ranks) * layout.width
            noise = torch.empty(size, dtype=dtype, pin_memory=torch.cuda.is_available())
            self._noise[key] = noise.normal_(0.0, NOISE_STD, generator=torch.Generator().manual_seed(self.seed))
        return self._noise[key]

    def _hash(self, text: str) -> int:
        return zlib.crc32(f"{self.seed} {text}".encode())


def check_adapter(folder: Path, layout: Layout) -> int:
    """The rank of the adapter in `folder`.

    Raises ValueError naming the adapter (the folder's name) for an option that is not implemented, a file that is
    missing or broken, a layer that `layout` does not have, another shape than the model's, a number that is an integer,
    NaN or infinite, or another base model.
    """
    rank, _ = read_config(folder, layout.checkpoint)
    with _opened(folder) as file:
        names = list(file.keys())
        _check_tensors(folder.name, {name: file.get_slice(name).get_shape() for name in names}, rank, layout)
        for name in names:
            tensor = file.get_tensor(name)
            if not tensor.is_floating_point():
                raise ValueError(
                    f"adapter {folder.name!r}: {name!r} is of {tensor.dtype}, not of floating-point numbers"
                )
            if not tensor.float().isfinite().all():
                raise ValueError(f"adapter {folder.name!r}: {name!r} has values that are NaN or infinite")
    return rank


def load_adapter(folder: Path, layout: Layout, dtype: torch.dtype) -> Tensor:
    """(rank, width) of `dtype`, zero where the adapter changes nothing; errors as check_adapter, bar NaN."""
    rank, scaling = read_config(folder, layout.checkpoint)
    rows = torch.zeros(rank, layout.width, dtype=dtype)
    parts = layout.parts(rows)
    with _opened(folder) as file:
        names = list(file.keys())
        _check_tensors(folder.name, {name: file.get_slice(name).get_shape() for name in names}, rank, layout)
        for full_name in names:
            name, factor = split_name(full_name, layout.prefix)
            a, b = parts[name]
            tensor = file.get_tensor(full_name)
            if factor == "A":
                a.copy_(tensor)
            else:
                b.copy_(tensor.T.float() * scaling)
    return rows


def save_adapter(folder: Path, rows: Tensor, layout: Layout, alpha: float) -> None:
    """Write rows (rank, width) in PEFT's format, as an adapter of scaling alpha / rank."""
    rank = rows.shape[0]
    tensors = {}
    for name, (a, b) in layout.parts(rows).items():
        tensors[f"{PEFT_PREFIX}{layout.prefix}{name}.lora_A.weight"] = a.contiguous()
        tensors[f"{PEFT_PREFIX}{layout.prefix}{name}.lora_B.weight"] = (b.T * (rank / alpha)).contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None if layout.checkpoint is None else base_name(layout.checkpoint),
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": layout.prefix == "transformer.",
        "target_modules": sorted({name.split(".", 2)[2] for name in layout.parts(rows)}),
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / WEIGHT_FILE, metadata={"format": "pt"})


def read_config(folder: Path, checkpoint: str | None) -> tuple[int, float]:
    """Rank and scaling, for the model from `checkpoint`; ValueError naming the adapter and what does not fit."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"adapter {folder.name!r}: {CONFIG_FILE} is not readable: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"adapter {folder.name!r}: {CONFIG_FILE} is no JSON object")
    if config.get("peft_type") != "LORA":
        raise ValueError(f"adapter {folder.name!r}: peft_type is {config.get('peft_type')!r}, not 'LORA'")
    if config.get("bias", "none") != "none":
        raise ValueError(f"adapter {folder.name!r}: bias={config['bias']!r} is not supported, only 'none'")
    for option in sorted(set(config) - HARMLESS - READ):
        if config[option]:  # an option that is off is null, false or empty
            raise ValueError(f"adapter {folder.name!r}: {option}={config[option]!r} is not supported")
    initialisation = config.get("init_lora_weights")
    if isinstance(initialisation, str) and initialisation.startswith(CHANGES_BASE):
        raise ValueError(
            f"adapter {folder.name!r}: init_lora_weights={initialisation!r} changes the base model's weights too; "
            "save it with path_initial_model_for_weight_conversion"
        )
    check_base(folder.name, str(config.get("base_model_name_or_path") or ""), checkpoint)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"adapter {folder.name!r}: r={rank!r} and lora_alpha={alpha!r} are no rank and scaling")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def split_name(full_name: str, prefix: str) -> tuple[str, str]:
    """The layer that a tensor of the file belongs to, and "A" or "B"; the name as it is where it is neither."""
    name, _, kind = full_name.removeprefix(PEFT_PREFIX).removeprefix(prefix).rpartition(".lora_")
    return (name, kind[0]) if kind in ("A.weight", "B.weight") else (full_name, "")


def _in_counting_order(name: str) -> list[tuple[int, str]]:
    """Digits are compared as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _opened(folder: Path) -> Any:
    try:
        return safe_open(folder / WEIGHT_FILE, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"adapter {folder.name!r}: {WEIGHT_FILE} is missing or broken: {error}") from error


def _check_tensors(adapter_id: str, shapes: dict[str, Sequence[int]], rank: int, layout: Layout) -> None:
    """Every A has its B, and both are of a layer of `layout` and of its shape."""
    parts = layout.parts(torch.empty(rank, layout.width, device="meta"))
    found: dict[str, set[str]] = {}
    for full_name, shape in shapes.items():
        name, factor = split_name(full_name, layout.prefix)
        if name not in parts:
            raise ValueError(
                f"adapter {adapter_id!r} has {full_name!r}, which is no A or B of a linear layer in the model's blocks "
                "that lora.targets names"
            )
        a, b = parts[name]
        expected = tuple(a.shape) if factor == "A" else tuple(b.T.shape)
        if tuple(shape) != expected:
            raise ValueError(
                f"adapter {adapter_id!r} belongs to another base model: {full_name!r} is {tuple(shape)}, and with "
                f"rank {rank} this model needs {expected}"
            )
        found.setdefault(name, set()).add(factor)
    halves = sorted(name for name, factors in found.items() if len(factors) == 1)
    if halves or not found:
        raise ValueError(f"adapter {adapter_id!r} lacks the A or the B of {', '.join(halves) or 'every layer'}")
