"""Arms: what each variant of a study is made of, and in which order their points run.

A study gives an arm as a mapping of components. A component replaces the study's own or, where it is a plain mapping of
keywords, changes only these.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from framework.build import MakeRouter, MakeScheduler, MakeTrace
from framework.checks import not_negative, shown, whole
from framework.config import describe, suggest
from framework.contracts import ServerState
from framework.engine.torch_engine.replica import check_adapters_apart, check_shares
from framework.link import Link
from framework.replay import Clock, check_clock
from framework.router.least_outstanding import least_outstanding
from framework.router.round_robin import round_robin
from framework.server_load import ServerLoad
from framework.study.load import Load
from framework.study.modelled import with_times
from framework.study.parts import EngineParts, Placement, check_scheduler, resolve_component
from framework.study.roles import CHANGED, Group, MakeRebalance, check_moving, resolve_groups

Arms = dict[str, dict[str, Any]]  # as Hydra makes them: a component is a call, a mapping of keywords, or the clock
COMPONENTS = ("scheduler", "engine", "model", "quantization", "lora", "trace", "clock")
OPTIONAL = ("servers", "router", "view_delay", "placement", "decode_router", "link", "migrate")
ROUND_ROBIN: MakeRouter = partial(round_robin)
LEAST_OUTSTANDING: MakeRouter = partial(least_outstanding)
MakeLink = partial[Link]


@dataclass(frozen=True, kw_only=True)
class Arm(EngineParts):
    """One variant: what an engine is made of, and the schedulers, trace, clock and servers that it is used with.

    `servers` are so many that are alike, or some by name: then the arm's own parts are those of the first of these.
    """

    scheduler: MakeScheduler
    trace: MakeTrace
    clock: Clock
    servers: int | dict[str, Group] = 1
    router: MakeRouter = ROUND_ROBIN  # of requests that arrive
    view_delay: float = 0.0  # s: how old what a router sees of a server is
    placement: Placement = "device"
    decode_router: MakeRouter = LEAST_OUTSTANDING  # of those that prefill servers hand over
    migrate: MakeRebalance | None = None  # of those that decode, from one server to another
    link: MakeLink | None = None  # over which sequences move

    @cached_property
    def groups(self) -> list[Group]:
        """Its servers, in the order of their numbers."""
        if isinstance(self.servers, dict):
            return list(self.servers.values())
        parts = {name: getattr(self, name) for name in (*CHANGED, "clock")}
        return [Group(num=self.servers, role="mixed", **parts)]

    @property
    def has_own_devices(self) -> bool:
        """Whether each server has a device of its own, and serves in real time."""
        return self.placement in ("gpus", "ray")

    @property
    def num_servers(self) -> int:
        return sum(group.num for group in self.groups)

    @cached_property
    def warm_up_key(self) -> str:
        """Of two arms with equal keys and one engine, only the first needs a warm-up."""
        return self.key("scheduler", "trace")


def resolve_arms(arms: Arms, defaults: Mapping[str, Any]) -> dict[str, Arm]:
    """Every arm with all its components.

    Raises ValueError for an unknown component or keyword, for one that the arm's scheduler refuses, for a prefix cache
    over an engine that keeps no keys and values, for swapping without room on the host, for servers that would have no
    share of something, and for an arm that is modelled where no cost model is of it.
    """
    resolved = {}
    for arm, components in arms.items():
        if not re.fullmatch(r"[\w.+-]+", arm):
            raise ValueError(f"arm name {shown(arm)} names a folder: use letters, digits, '_', '.', '+' and '-' only")
        if not isinstance(components, dict):
            raise ValueError(f"arms.{arm} is {shown(components)}: give a mapping of {', '.join(COMPONENTS)}")
        names = COMPONENTS + OPTIONAL
        changed = {
            key: resolve_component(f"arms.{arm}", key, value, defaults, names) for key, value in components.items()
        }
        parts = {**defaults, **changed}
        missing = [name for name in COMPONENTS if name not in parts]
        if missing:
            raise ValueError(f"arms.{arm} has no {', '.join(missing)}, and the study gives none")
        resolved[arm] = resolve_arm(f"arms.{arm}", parts)
    return with_cost_models(resolved)


def with_cost_models(arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """The same arms, where what is modelled names its cost model, and what is recorded its record's content.

    Raises ValueError naming the arm for a cost model or a record that is not of it, and for the wall clock.
    """
    return {name: with_cost_model(name, arm) if arm.is_modelled else arm for name, arm in arms.items()}


def resolve_arm(place: str, parts: dict[str, Any]) -> Arm:
    not_negative(f"{place}.view_delay", parts.get("view_delay", 0.0))
    servers = parts.get("servers", 1)
    if isinstance(servers, dict):
        groups = resolve_groups(f"{place}.servers", servers, parts)
        arm = with_groups(Arm(**parts | {"servers": 1}), groups)
    else:
        whole(f"{place}.servers", servers)
        arm = Arm(**parts)
        check_scheduler(place, arm.scheduler, arm)
    check_router(place, arm)
    check_moves(place, arm)
    if not arm.is_modelled:
        check_given(place, arm)
    return arm


def check_given(place: str, arm: Arm) -> None:
    """ValueError where what the config gives all measured servers together is too little or cannot be shared.

    What it leaves to the free memory is known once the engine is built.
    """
    engine, lora = describe(arm.engine), describe(arm.lora)
    try:
        if arm.num_servers > 1 or arm.placement == "turns":
            check_adapters_apart(lora.get("memory") == "unified", arm.num_servers)
        numbers = engine.get("num_blocks"), lora.get("num_slots"), engine.get("num_swap_blocks")
        check_shares(arm.num_servers, *(number or 0 for number in numbers))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def with_groups(arm: Arm, groups: dict[str, Group]) -> Arm:
    first = next(iter(groups.values()))
    return replace(arm, servers=groups, **{name: getattr(first, name) for name in CHANGED})


def with_cost_model(name: str, arm: Arm) -> Arm:
    if not isinstance(arm.servers, dict):
        return with_times(name, arm)
    return with_groups(arm, {key: with_times(f"{name}.servers.{key}", group) for key, group in arm.servers.items()})


def check_moves(place: str, arm: Arm) -> None:
    """ValueError for sequences that move without a link, and for what is of no use since none moves."""
    roles = {group.role for group in arm.groups}
    if arm.has_own_devices and (isinstance(arm.servers, dict) or arm.migrate is not None):
        raise ValueError(f"{place}: with placement={arm.placement} all servers are alike, and no sequence moves")
    if "prefill" not in roles and arm.decode_router is not LEAST_OUTSTANDING:
        raise ValueError(f"{place} has no prefill servers, so nothing is handed over: leave out decode_router")
    if "prefill" not in roles and arm.migrate is None:
        if arm.link is not None:
            raise ValueError(f"{place} has neither prefill servers nor migrate, so no sequence moves: leave out link")
        return
    if arm.link is None:
        raise ValueError(f"{place}: its sequences move between servers on a link: add +link@{place}.link=nvlink")
    try:
        arm.link()
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    try_router(f"{place}.decode_router", arm.decode_router, arm.view_delay)
    if arm.migrate is not None:
        check_migrate(place, arm, arm.migrate)


def check_migrate(place: str, arm: Arm, migrate: MakeRebalance) -> None:
    decoding = [group for group in arm.groups if group.role != "prefill"]
    if sum(group.num for group in decoding) < 2:
        raise ValueError(f"{place}: migrate needs two servers that decode, so that a sequence can go to the other one")
    for group in decoding:
        check_moving(place, check_scheduler(place, group.scheduler, group))
    try_router(place, migrate, arm.view_delay)


def check_router(place: str, arm: Arm) -> None:
    """ValueError for one that refuses its keywords or the age of what it sees, and for one that nobody would ask.

    Likewise for several servers on the wall clock that share a device, and for turns of steps that are not measured.
    """
    if arm.has_own_devices and arm.clock != "wall":
        raise ValueError(f"{place}: placement={arm.placement} serves in real time: set clock=wall")
    if arm.placement == "turns" and (arm.clock == "wall" or arm.is_modelled):
        raise ValueError(f"{place}: placement=turns measures each step alone: set clock=virtual and engine=torch")
    if arm.clock == "wall" and not arm.has_own_devices and (arm.view_delay or arm.router is not ROUND_ROBIN):
        raise ValueError(
            f"{place}: clock=wall has one server and asks no router: leave out router and view_delay, or give each "
            "server a device of its own with placement=gpus"
        )
    try:
        if not arm.has_own_devices:
            check_clock(arm.num_servers, arm.clock)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    try_router(place, arm.router, arm.view_delay)


def try_router(place: str, make: MakeRouter | MakeRebalance, view_delay: float) -> None:
    try:
        make([SeenServer(0, view_delay, ServerLoad(1))])
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


@dataclass(frozen=True)
class SeenServer:
    """A server of nothing, to try a router on."""

    index: int
    view_delay: float
    state: ServerState


def parts_of(keywords: Mapping[str, object]) -> dict[str, Any]:
    """The components among a study's keywords: what its arms have, unless they change it."""
    return {name: keywords[name] for name in COMPONENTS + OPTIONAL if name in keywords}


def check_named(key: str, names: list[str], arms: Collection[str]) -> None:
    """ValueError for a name, of those that the study's keyword `key` has, which is no arm's."""
    for name in names:
        if name not in arms:
            raise ValueError(f"{key} has {name!r}, which is no arm{suggest(name, arms)}")


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
