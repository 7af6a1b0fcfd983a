"""Arms: what each variant of a study is made of, and in which order their points run.

A study gives an arm as a mapping of components. A component replaces the study's own or, where it is a plain mapping of
keywords, changes only these.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any, Literal

import torch

from framework.build import ChangeModel, Decoder, MakeEngine, MakeModel, MakeRouter, MakeScheduler, MakeTrace
from framework.checks import not_negative, shown, whole
from framework.config import check_keywords, check_type, describe, suggest, with_keywords
from framework.core import ServerState
from framework.cost.record import Record
from framework.cost.subject import Target, read_target
from framework.engine.modelled import is_modelled, is_recorded
from framework.replay import Clock, check_clock
from framework.router.round_robin import round_robin
from framework.server_load import ServerLoad
from framework.study.files import digest_of
from framework.study.load import Load
from framework.study.modelled import with_cost_models
from framework.study.recorded import record_of

Arms = dict[str, dict[str, Any]]  # as Hydra makes them: a component is a call, a mapping of keywords, or the clock
COMPONENTS = ("scheduler", "engine", "model", "quantization", "lora", "trace", "clock")
OPTIONAL = ("servers", "router", "view_delay", "placement")
# What the servers run on: all on the study's device, each on a GPU of this machine, or each in a Ray actor with a GPU
Placement = Literal["device", "gpus", "ray"]
ROUND_ROBIN: MakeRouter = partial(round_robin)


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
        return {field.name: describe(getattr(self, field.name)) for field in fields(self)}

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


@dataclass(frozen=True, kw_only=True)
class Arm(EngineParts):
    """One variant: what an engine is made of, and the schedulers, trace, clock and servers that it is used with."""

    scheduler: MakeScheduler
    trace: MakeTrace
    clock: Clock
    servers: int = 1
    router: MakeRouter = ROUND_ROBIN
    view_delay: float = 0.0  # s: how old what the router sees of a server is
    placement: Placement = "device"

    @cached_property
    def warm_up_key(self) -> str:
        """Of two arms with equal keys and one engine, only the first needs a warm-up."""
        return self.key("scheduler", "trace")


def resolve_arms(arms: Arms, defaults: Mapping[str, Any]) -> dict[str, Arm]:
    """Every arm with all its components.

    Raises ValueError for an unknown component or keyword, for one that the arm's scheduler refuses, for a prefix cache
    over an engine that keeps no keys and values, for swapping without room on the host, and for an arm that is modelled
    where no cost model is of it.
    """
    resolved = {}
    for arm, components in arms.items():
        if not re.fullmatch(r"[\w.+-]+", arm):
            raise ValueError(f"arm name {shown(arm)} names a folder: use letters, digits, '_', '.', '+' and '-' only")
        if not isinstance(components, dict):
            raise ValueError(f"arms.{arm} is {shown(components)}: give a mapping of {', '.join(COMPONENTS)}")
        changed = {name: resolve_component(arm, name, value, defaults) for name, value in components.items()}
        parts = {**defaults, **changed}
        missing = [name for name in COMPONENTS if name not in parts]
        if missing:
            raise ValueError(f"arms.{arm} has no {', '.join(missing)}, and the study gives none")
        whole(f"arms.{arm}.servers", parts.get("servers", 1))
        not_negative(f"arms.{arm}.view_delay", parts.get("view_delay", 0.0))
        resolved[arm] = Arm(**parts)
        check_scheduler(arm, resolved[arm])
        check_router(arm, resolved[arm])
    return with_cost_models(resolved)


def check_router(arm: str, parts: Arm) -> None:
    """ValueError for one that refuses its keywords or the age of what it sees, and for one that nobody would ask.

    Likewise for several servers on the wall clock that share a device.
    """
    if parts.placement != "device" and parts.clock != "wall":
        raise ValueError(f"arms.{arm}: placement={parts.placement} serves in real time: set clock=wall")
    if parts.clock == "wall" and parts.placement == "device" and (parts.view_delay or parts.router is not ROUND_ROBIN):
        raise ValueError(
            f"arms.{arm}: clock=wall has one server and asks no router: leave out router and view_delay, or give each "
            "server a device of its own with placement=gpus"
        )
    try:
        if parts.placement == "device":
            check_clock(parts.servers, parts.clock)
        parts.router([SeenServer(0, parts.view_delay, ServerLoad(1))])
    except ValueError as error:
        raise ValueError(f"arms.{arm}: {error}") from error


@dataclass(frozen=True)
class SeenServer:
    """A server of nothing, to try a router on."""

    index: int
    view_delay: float
    state: ServerState


def check_scheduler(arm: str, parts: Arm) -> None:
    try:
        parts.scheduler(num_blocks=1, block_size=1)
    except ValueError as error:
        raise ValueError(f"arms.{arm}: {error}") from error
    scheduler, engine = describe(parts.scheduler), describe(parts.engine)
    if scheduler.get("preemption") == "swap" and engine.get("num_swap_blocks") == 0:
        raise ValueError(
            f"arms.{arm}: scheduler.preemption=swap needs room on the host: set engine.num_swap_blocks, which is 0"
        )
    policy = scheduler.get("prefix_cache")
    if policy is not None and engine.get("use_cache") is False:
        raise ValueError(
            f"arms.{arm}: scheduler.prefix_cache={policy} keeps KV blocks, and engine.use_cache=false has none"
        )


def parts_of(keywords: Mapping[str, object]) -> dict[str, Any]:
    """The components among a study's keywords: what its arms have, unless they change it."""
    return {name: keywords[name] for name in COMPONENTS + OPTIONAL if name in keywords}


def check_named(key: str, names: list[str], arms: Collection[str]) -> None:
    """ValueError for a name, of those that the study's keyword `key` has, which is no arm's."""
    for name in names:
        if name not in arms:
            raise ValueError(f"{key} has {name!r}, which is no arm{suggest(name, arms)}")


def resolve_component(arm: str, name: str, value: Any, defaults: Mapping[str, Any]) -> Any:
    if name not in COMPONENTS + OPTIONAL:
        raise ValueError(f"unknown component {shown(name)} in arms.{arm}{suggest(name, COMPONENTS + OPTIONAL)}")
    if name == "clock":
        check_type(Clock, value, f"arms.{arm}.clock")
        return value
    if name == "placement":
        check_type(Placement, value, f"arms.{arm}.placement")
        return value
    if name in ("servers", "view_delay"):
        return value
    if callable(value):
        return value
    if not isinstance(value, dict):
        raise ValueError(
            f"arms.{arm}.{name} is {shown(value)}: give another {name}, or a mapping of keywords to change"
        )
    if name not in defaults:
        raise ValueError(f"arms.{arm}.{name} changes keywords of a {name} that the study does not have")
    check_keywords(defaults[name].func, value, f"arms.{arm}.{name}")
    return with_keywords(defaults[name], **value)


def configs_of(arms: Mapping[str, Arm]) -> dict[str, dict[str, Any]]:
    return {name: arm.config for name, arm in arms.items()}


def point_order(arms: Mapping[str, Arm], loads: list[Load], seeds: list[int]) -> list[tuple[str, Load, int]]:
    """All arms of one seed before the next, in changing order, so that a drift of the machine's speed meets all.

    Arms that share a model, and an engine, are neighbours; the next seed begins with the engine at hand.
    """
    models: dict[str, dict[str, list[str]]] = {}  # model → engine → arms
    for name, arm in arms.items():
        models.setdefault(arm.model_key, {}).setdefault(arm.engine_key, []).append(name)
    neighbours = [names for engines in models.values() for names in engines.values()]
    order: list[tuple[str, Load, int]] = []
    for seed in seeds:
        for names in neighbours:
            for load in loads:
                order += [(arm, load, seed) for arm in names]
                names.reverse()
        neighbours.reverse()
    return order
