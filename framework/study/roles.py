"""Servers of an arm that are not all alike: by name, each an arm in small, with a role of its own.

`servers: {prefill: {num: 2}, decode: {num: 2, scheduler: …}}` has two roles; a name that is no role says which one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from framework.build import MakeRouter, MakeScheduler
from framework.checks import shown, whole
from framework.config import suggest
from framework.contracts import MovingScheduler, Rebalance, Scheduler
from framework.handover import HandOver, Migration, Transfers
from framework.link import Link
from framework.replay import Clock, Mover, Server
from framework.study.parts import EngineParts, check_scheduler, resolve_component

Role = Literal["prefill", "decode", "mixed"]
ROLES: tuple[Role, ...] = get_args(Role)
CHANGED = ("scheduler", "engine", "model", "quantization", "lora")  # what servers may have otherwise than their arm
OF_SERVERS = ("num", "role", *CHANGED)
MakeRebalance = partial[Rebalance]  # called with the servers that decode


@dataclass(frozen=True, kw_only=True)
class Group(EngineParts):
    """`num` servers that are alike. Prefill servers hand sequences over to decode servers, mixed ones keep theirs."""

    num: int
    role: Role
    scheduler: MakeScheduler
    clock: Clock


def resolve_groups(place: str, groups: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Group]:
    """The servers of the arm at `place`, which has these parts.

    Raises ValueError for no servers, an unknown role or part, a role without a partner, and for a scheduler that lets
    no sequence go where they have to move.
    """
    if not groups:
        raise ValueError(f"{place} is empty: give a number of servers, or servers by role")
    resolved = {str(name): resolve_group(f"{place}.{name}", str(name), given, parts) for name, given in groups.items()}
    roles = {group.role for group in resolved.values()}
    for role, partner in (("prefill", "decode"), ("decode", "prefill")):
        if role in roles and partner not in roles:
            raise ValueError(f"{place} has {role} servers and no {partner} servers, which they need")
    moving = {name: group for name, group in resolved.items() if group.role != "mixed"}
    for name, group in resolved.items():
        scheduler = check_scheduler(f"{place}.{name}", group.scheduler, group)
        if name in moving:
            check_moving(f"{place}.{name}", scheduler)
    if len({(group.model_key.partition(" ")[0]) for group in moving.values()}) > 1:
        raise ValueError(f"{place}: prefill and decode servers need one model, quantization and lora")
    if len({group.is_modelled for group in resolved.values()}) > 1 or any(one.is_recorded for one in resolved.values()):
        raise ValueError(f"{place}: all servers have engine=modelled, or all a measured one; none repeats a record")
    if len({group.engine_key for group in resolved.values() if not group.is_modelled}) > 1:
        raise ValueError(f"{place}: measured servers share one engine, so only num, role and scheduler may differ")
    return resolved


def check_moving(place: str, scheduler: Scheduler) -> None:
    """ValueError for a scheduler that lets no sequence go, where they have to move."""
    if not isinstance(scheduler, MovingScheduler):
        raise ValueError(
            f"{place}: {type(scheduler).__name__} has no release and accept, so no sequence can move: take "
            "scheduler=continuous"
        )


def resolve_group(place: str, name: str, given: Any, parts: Mapping[str, Any]) -> Group:
    if not isinstance(given, dict):
        raise ValueError(f"{place} is {shown(given)}: give a mapping of {', '.join(OF_SERVERS)}")
    changed = {key: resolve_component(place, key, value, parts, OF_SERVERS) for key, value in given.items()}
    role = changed.pop("role", name)
    if role not in ROLES:
        raise ValueError(f"{place} is of role {shown(role)}{suggest(str(role), ROLES)} (set {place}.role)")
    num = whole(f"{place}.num", changed.pop("num", 1))
    own = {key: changed.get(key, parts[key]) for key in CHANGED}
    return Group(num=num, role=role, clock=parts["clock"], **own)


def with_role(groups: Iterable[Group], servers: list[Server], *roles: Role) -> list[Server]:
    """Those of the servers, which stand in the order of the groups, that have one of these roles."""
    of_each = [group.role for group in groups for _ in range(group.num)]
    return [server for server, role in zip(servers, of_each, strict=True) if role in roles]


def make_movers(
    groups: Iterable[Group],
    servers: list[Server],
    *,
    link: Link | None,
    decode_router: MakeRouter,
    migrate: MakeRebalance | None,
    num_layers: int,
) -> list[Mover]:
    """Who moves sequences between these servers; nobody without a link.

    Prefill servers hand theirs over to decode servers, and with `migrate` those that decode move theirs, too.
    """
    if link is None:
        return []
    groups = list(groups)
    prefill, decode, mixed = (with_role(groups, servers, role) for role in ROLES)
    decoding = [*decode, *mixed] if migrate else decode
    transfers = Transfers([*prefill, *decoding], link, num_layers)
    movers: list[Mover] = [HandOver(transfers, prefill, decode_router(decode))] if prefill else []
    return movers if migrate is None else [*movers, Migration(transfers, migrate(decoding))]
