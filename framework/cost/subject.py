"""What a cost model is of: a model's shape and dtype and what was done to it, read off an arm's config alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from framework.models.config import ModelConfig
from framework.models.loading import read_shape

LOAD_MODEL = "framework.models.loading.load_model"
SERVE_ADAPTERS = "framework.lora.pool.serve_adapters"
SHAPE = (  # what of a ModelConfig decides how long a step takes
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "tie_embeddings",
    "qkv_bias",
    "o_bias",
    "mlp_bias",
    "qk_norm",
    "windows",
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Plain data. `lora` has of adapters that are served the strategy, their rank and the layers; else the call."""

    shape: dict[str, Any]
    dtype: str
    quantization: dict[str, Any]
    lora: dict[str, Any]

    def differences(self, wanted: Subject) -> list[str]:
        """What this one has otherwise, naming both sides."""
        found = [
            f"{name} {value!r}, not {wanted.shape[name]!r}"
            for name, value in self.shape.items()
            if value != wanted.shape[name]
        ]
        for part in ("dtype", "quantization", "lora"):
            here, there = getattr(self, part), getattr(wanted, part)
            if here != there:
                found.append(f"{part} {named(here)}, not {named(there)}")
        return found


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an engine that loads no weights is told of the model that it stands for."""

    subject: Subject
    config: ModelConfig
    num_adapter_slots: int
    max_rank: int


def read_target(parts: dict[str, Any]) -> Target:
    """As `read_model`; ValueError for adapters in KV blocks."""
    target, lora = read_model(parts), parts["lora"]
    if lora["_target_"] == SERVE_ADAPTERS and lora.get("memory") == "unified":
        raise ValueError("engine=modelled has no adapters in KV blocks yet: take lora.memory=split")
    return target


def read_model(parts: dict[str, Any]) -> Target:
    """From an arm's config: its model, quantization and lora, as plain data.

    Raises ValueError for a model that something else than `load_model` makes.
    """
    model, lora = parts["model"], parts["lora"]
    if model["_target_"] != LOAD_MODEL:
        raise ValueError(
            f"engine=modelled and recorded read the shape of what {LOAD_MODEL} loads, not of {model['_target_']}"
        )
    keywords = without_call(model)
    config = read_shape(**keywords)
    subject = Subject(
        shape={name: plain(getattr(config, name)) for name in SHAPE},
        dtype=keywords["dtype"],
        quantization=without_call(parts["quantization"]) | {"_target_": parts["quantization"]["_target_"]},
        lora=service(lora),
    )
    return Target(
        subject=subject,
        config=config,
        num_adapter_slots=lora.get("num_slots", 0),
        max_rank=lora.get("max_rank", 0),
    )


def without_call(call: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in call.items() if not key.startswith("_")}


def service(lora: dict[str, Any]) -> dict[str, Any]:
    """How adapters are served: which and how many there are decides nothing of a step's cost."""
    if lora["_target_"] != SERVE_ADAPTERS:
        return without_call(lora) | {"_target_": lora["_target_"]}
    return {"strategy": lora["strategy"]["_target_"], "max_rank": lora["max_rank"], "targets": lora["targets"]}


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def named(part: Any) -> str:
    """The last name of a call, with its keywords."""
    if not isinstance(part, dict):
        return repr(part)
    name = str(part.get("_target_", part.get("strategy"))).rpartition(".")[2]
    keywords = {key: value for key, value in part.items() if key not in ("_target_", "strategy")}
    return f"{name} {keywords}" if keywords else name
