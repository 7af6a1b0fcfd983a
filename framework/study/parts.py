"""What arms and their servers are made of: components, which a mapping of keywords changes or another call replaces."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import torch

from framework.build import ChangeModel, Decoder, MakeEngine, MakeModel, MakeScheduler
from framework.checks import shown
from framework.config import check_keywords, check_type, describe, suggest, with_keywords
from framework.contracts import Scheduler
from framework.cost.record import Record
from framework.cost.subject import Target, read_target
from framework.engine.modelled import is_modelled, is_recorded
from framework.replay import Clock
from framework.study.files import digest_of
from framework.study.recorded import record_of

# device: the study's; several servers take turns on it. turns: the same, and a single server's steps run alone, too.
# gpus: a GPU of this machine for each server. ray: a GPU for each, in a Ray actor
Placement = Literal["device", "turns", "gpus", "ray"]
PLAIN = ("servers", "view_delay", "num", "role")  # components that are values


@dataclass(frozen=True, kw_only=True)
class EngineParts:
    """What an engine and its model are made of; equal keys stand for equal models and engines."""

    model: MakeModel
    quantization: ChangeModel
    lora: ChangeModel
    engine: MakeEngine

    @cached_property
    def config(self) -> dict[str, Any]:
        """Every part as plain data, from which Hydra's instantiate rebuilds it."""
        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}

    @property
    def is_modelled(self) -> bool:
        """Whether the engine executes nothing, and is told a config, or a record, instead of a model."""
        return is_modelled(self.engine)

    @property
    def is_recorded(self) -> bool:
        """Whether it repeats recorded runs."""
        return is_recorded(self.engine)

    @cached_property
    def model_key(self) -> str:
        if self.is_recorded:
            return f"{self.engine_key} recorded"
        key = self.key("model", "quantization", "lora")
        return f"{key} modelled" if self.is_modelled else key

    @cached_property
    def engine_key(self) -> str:
        return self.key("model", "quantization", "lora", "engine")

    def key(self, *parts: str) -> str:
        return digest_of([self.config[part] for part in parts])

    def target(self) -> Target | Record:
        """What stands for the model where the engine is modelled."""
        return record_of(self.config) if self.is_recorded else read_target(self.config)

    def load_model(self, device: torch.device) -> Decoder:
        """The model on `device`, quantized and with room for adapters as the parts say."""
        return self.lora(self.quantization(self.model(device=device)))


def check_scheduler(place: str, make: MakeScheduler, parts: EngineParts) -> Scheduler:
    """A scheduler for a cache of one block; ValueError for one that refuses its keywords or the engine at `place`."""
    try:
        made = make(num_blocks=1, block_size=1)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    scheduler, engine = describe(make), describe(parts.engine)
    if scheduler.get("preemption") == "swap" and engine.get("num_swap_blocks") == 0:
        raise ValueError(
            f"{place}: scheduler.preemption=swap needs room on the host: set engine.num_swap_blocks, which is 0"
        )
    policy = scheduler.get("prefix_cache")
    if policy is not None and engine.get("use_cache") is False:
        raise ValueError(
            f"{place}: scheduler.prefix_cache={policy} keeps KV blocks, and engine.use_cache=false has none"
        )
    return made


def resolve_component(place: str, name: str, value: Any, defaults: Mapping[str, Any], names: Collection[str]) -> Any:
    """A component of `names`, in the arm or the servers at `place`; a mapping changes keywords of the default."""
    if name not in names:
        raise ValueError(f"unknown component {shown(name)} in {place}{suggest(name, names)}")
    if name == "clock":
        check_type(Clock, value, f"{place}.clock")
        return value
    if name == "placement":
        check_type(Placement, value, f"{place}.placement")
        return value
    if name in PLAIN:
        return value
    if callable(value):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"{place}.{name} is {shown(value)}: give another {name}, or a mapping of keywords to change")
    if name not in defaults:
        raise ValueError(f"{place}.{name} changes keywords of a {name} that the study does not have")
    check_keywords(defaults[name].func, value, f"{place}.{name}")
    return with_keywords(defaults[name], **value)


def plain(value: Any) -> Any:
    """As data; of servers by their names, the config of each."""
    if isinstance(value, dict):
        return {name: item.config if isinstance(item, EngineParts) else describe(item) for name, item in value.items()}
    return describe(value)
