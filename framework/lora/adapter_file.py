"""An adapter's folder in PEFT's format: its config with types, its tensors by layer and kind, read and written.

What would change the arithmetic and is not implemented is refused by name. LoRA is arXiv:2106.09685, DoRA 2402.09353.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file
from torch import Tensor

from framework.checks import cut, shown
from framework.lora.base_model import base_name, check_base
from framework.lora.layout import Layout, module_name
from framework.models.config_file import checked
from framework.models.files import FLOATS, opened_tensors, read_json

CONFIG_FILE, WEIGHT_FILE, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
CONVERSION = (
    f"python -c \"import torch, safetensors.torch as s; s.save_file(torch.load('{PICKLE}', weights_only=True), "
    f"'{WEIGHT_FILE}')\""
)
PEFT_PREFIX = "base_model.model."
# Options of PEFT's LoraConfig that say nothing about the arithmetic
HARMLESS = {
    *("auto_mapping", "exclude_modules", "fan_in_fan_out", "inference_mode"),
    *("layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_version"),
    *("revision", "runtime_config", "target_modules", "task_type", "qalora_group_size"),
    *("eva_config", "loftq_config"),
}
# Initialisations after which the base model's weights are others than the checkpoint's
CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
# Ends of a tensor's name, and what it is: a factor, DoRA's magnitudes, or a table that replaces the base model's
KINDS = {
    ".lora_A.weight": "A",
    ".lora_embedding_A": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_B": "B",
    ".lora_magnitude_vector": "magnitude",
    ".base_layer.weight": "table",
    ".weight": "table",
}

Rank = Annotated[int, Field(ge=1, le=2**16)]
Alpha = Annotated[float, Field(allow_inf_nan=False)]


class AdapterConfig(BaseModel):
    """The keys of adapter_config.json that are read."""

    model_config = ConfigDict(strict=True, extra="allow")

    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Alpha
    base_model_name_or_path: str = ""
    bias: Literal["none"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, Rank] = {}
    alpha_pattern: dict[str, Alpha] = {}
    modules_to_save: list[str] = []
    init_lora_weights: bool | str = True

    def rank_of(self, name: str) -> int:
        """Of the layer with this whole name in the base model: the first pattern that fits, as PEFT has it."""
        return next((rank for end, rank in self.rank_pattern.items() if _fits(end, name)), self.r)

    def scaling_of(self, name: str) -> float:
        alpha = next((alpha for end, alpha in self.alpha_pattern.items() if _fits(end, name)), self.lora_alpha)
        rank = self.rank_of(name)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True, slots=True)
class Extras:
    """What an adapter has beside factors, by layer: DoRA's magnitudes (out_features,), and whole tables."""

    magnitudes: dict[str, Tensor] = field(default_factory=dict)
    tables: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """An adapter whose config and tensor shapes have been found to fit `layout`."""

    path: Path
    layout: Layout
    config: AdapterConfig
    names: dict[tuple[str, str], str]  # (layer, kind) → name in the file

    @property
    def rank(self) -> int:
        """The largest of its layers' ranks."""
        layers = [self.layout.full_name(layer) for layer, kind in self.names if kind == "A"]
        return max((self.config.rank_of(layer) for layer in layers), default=1)

    def tensors(self, *kinds: str) -> Iterator[tuple[str, str, Tensor]]:
        """(layer, kind, tensor) of these kinds; ValueError for numbers that are NaN or infinite."""
        with opened_tensors(self.path / WEIGHT_FILE) as file:
            for (layer, kind), name in self.names.items():
                if kind in kinds:
                    tensor = file.get_tensor(name)
                    if not tensor.float().isfinite().all():
                        raise ValueError(f"adapter {self.path.name!r}: {name!r} has values that are NaN or infinite")
                    yield layer, kind, tensor

    def rows(self, dtype: torch.dtype) -> Tensor:
        """(rank, width) of `dtype` as the layout says, zero where the adapter changes nothing; B with its scaling."""
        rows = torch.zeros(self.rank, self.layout.width, dtype=dtype)
        parts = self.layout.parts(rows)
        for layer, kind, tensor in self.tensors("A", "B"):
            name = self.layout.full_name(layer)
            a, b = (part[: self.config.rank_of(name)] for part in parts[layer])
            if kind == "A":
                a.copy_(tensor)
            else:
                b.copy_(tensor.T.float() * self.config.scaling_of(name))
        return rows

    def extras(self) -> Extras:
        extras = Extras()
        for layer, kind, tensor in self.tensors("magnitude", "table"):
            (extras.magnitudes if kind == "magnitude" else extras.tables)[layer] = tensor
        return extras

    def check_has_factors_alone(self) -> None:
        """ValueError for DoRA, and for a table that is not the base model's own, as PEFT writes beside its factors."""
        if self.config.use_dora:
            raise ValueError(f"adapter {self.path.name!r}: use_dora=True is served by lora=merged alone")
        for layer, _, table in self.tensors("table"):
            own = self.layout.outer[layer].weight
            if own.shape != table.shape or not torch.equal(table.to(own), own):
                raise ValueError(
                    f"adapter {self.path.name!r} has a whole {layer} of its own (modules_to_save): lora=merged alone "
                    "serves it"
                )


def open_adapter(folder: Path, layout: Layout) -> AdapterFolder:
    """The adapter in `folder`, of which only the config and the file's header are read.

    Raises ValueError naming the adapter (the folder's name) for an option that is not implemented, a file that is
    missing or broken, a layer that `layout` does not have, another shape than the model's, numbers that are no
    floating-point ones, or another base model.
    """
    config = read_config(folder, layout)
    if not (folder / WEIGHT_FILE).is_file() and (folder / PICKLE).is_file():
        raise ValueError(
            f"adapter {folder.name!r} has {PICKLE}, a pickle, which may run code: convert it, {CONVERSION}"
        )
    names: dict[tuple[str, str], str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with opened_tensors(folder / WEIGHT_FILE) as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part, key = file.get_slice(name), split_name(name, layout.prefix)
                if key in names:
                    raise ValueError(f"{name!r} and {names[key]!r} are the same")
                names[key], shapes[name] = name, tuple(part.get_shape())
                if part.get_dtype() not in FLOATS:
                    raise ValueError(f"{name!r} is of {part.get_dtype()}; weights are of {', '.join(FLOATS)}")
    except ValueError as error:
        raise ValueError(f"adapter {folder.name!r}: {error}") from error
    adapter = AdapterFolder(folder, layout, config, names)
    _check_tensors(adapter, shapes)
    return adapter


def save_adapter(folder: Path, rows: Tensor, layout: Layout, alpha: float) -> None:
    """Write rows (rank, width) in PEFT's format, as an adapter of scaling alpha / rank."""
    rank, tensors = rows.shape[0], {}
    for name, (a, b) in layout.parts(rows).items():
        ends = (
            ("lora_embedding_A", "lora_embedding_B") if layout.is_lookup(name) else ("lora_A.weight", "lora_B.weight")
        )
        a_end, b_end = ends
        tensors[f"{PEFT_PREFIX}{layout.full_name(name)}.{a_end}"] = a.contiguous()
        tensors[f"{PEFT_PREFIX}{layout.full_name(name)}.{b_end}"] = (b.T * (rank / alpha)).contiguous()
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
        "target_modules": sorted({module_name(name) for name in layout.parts(rows)}),
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / WEIGHT_FILE, metadata={"format": "pt"})


def read_config(folder: Path, layout: Layout) -> AdapterConfig:
    """The typed config; ValueError naming the adapter, the option, its value and what is allowed."""
    adapter = f"adapter {folder.name!r}"
    try:
        given = read_json(folder / CONFIG_FILE)
    except (OSError, ValueError) as error:
        raise ValueError(f"{adapter}: {error}") from error
    config = checked(AdapterConfig, {key: value for key, value in given.items() if value is not None}, adapter)
    extra: dict[str, Any] = config.model_extra or {}
    for option in sorted(set(extra) - HARMLESS):
        if extra[option]:  # an option that is off is null, false or empty
            raise ValueError(f"{adapter}: {cut(option)}={shown(extra[option])} is not supported")
    initialisation = config.init_lora_weights
    if isinstance(initialisation, str) and initialisation.startswith(CHANGES_BASE):
        raise ValueError(
            f"{adapter}: init_lora_weights={shown(initialisation)} changes the base model's weights too; "
            "save it with path_initial_model_for_weight_conversion"
        )
    others = sorted(set(config.modules_to_save) - {*layout.outer, *map(layout.full_name, layout.outer)})
    if others:
        raise ValueError(f"{adapter}: modules_to_save={shown(others)} is not supported, only {', '.join(layout.outer)}")
    for pattern in (*config.rank_pattern, *config.alpha_pattern):
        _check_pattern(pattern, adapter)
    check_base(folder.name, config.base_model_name_or_path, layout.checkpoint)
    return config


def split_name(full_name: str, prefix: str) -> tuple[str, str]:
    """The layer that a tensor of the file belongs to, and its kind; the name as it is, and "", where it is none."""
    inner = full_name.removeprefix(PEFT_PREFIX).removeprefix(prefix)
    end = next((end for end in KINDS if inner.endswith(end)), None)
    return (full_name, "") if end is None else (inner.removesuffix(end), KINDS[end])


def _fits(end: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({end})$", name) is not None


def _check_pattern(pattern: str, adapter: str) -> None:
    try:
        _fits(pattern, "")
    except re.error as error:
        raise ValueError(f"{adapter}: the pattern {shown(pattern)} is no regular expression ({error})") from None


def _check_tensors(adapter: AdapterFolder, shapes: dict[str, tuple[int, ...]]) -> None:
    """Every A has its B and, with DoRA, its magnitudes; all are of a layer of the layout and of its shape."""
    layout, config, adapter_id = adapter.layout, adapter.config, adapter.path.name
    parts = layout.parts(torch.empty(1, layout.width, device="meta"))
    found: dict[str, set[str]] = {}
    for (layer, kind), name in adapter.names.items():
        is_known = layer in layout.outer if kind == "table" else layer in parts and kind != ""
        if not is_known or (kind == "magnitude" and not config.use_dora):
            raise ValueError(
                f"adapter {adapter_id!r} has {shown(name)}, which is of no layer that lora.targets names (null: the "
                "linear layers of the blocks; it may name lm_head and the embedding too)"
            )
        rank = config.rank_of(layout.full_name(layer))
        if kind == "table":
            expected: tuple[int, ...] = tuple(layout.outer[layer].weight.shape)
        else:
            in_features, out_features = (part.shape[1] for part in parts[layer])
            expected = {"A": (rank, in_features), "B": (out_features, rank), "magnitude": (out_features,)}[kind]
            found.setdefault(layer, set()).add(kind)
        if shapes[name] != expected:
            raise ValueError(
                f"adapter {adapter_id!r} belongs to another base model: {name!r} is {shapes[name]}, and with rank "
                f"{rank} this model needs {expected}"
            )
    needed = {"A", "B", "magnitude"} if config.use_dora else {"A", "B"}
    halves = sorted(layer for layer, kinds in found.items() if kinds != needed)
    if halves or not (found or adapter.names):
        what = "the A, the B or the magnitudes" if config.use_dora else "the A or the B"
        raise ValueError(f"adapter {adapter_id!r} lacks {what} of {', '.join(halves) or 'every layer'}")
