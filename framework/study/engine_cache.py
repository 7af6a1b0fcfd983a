"""Keeps models and engines while a study goes from arm to arm, and warms them up before they are timed."""

from collections.abc import Callable, Iterable

import torch

from framework.build import (
    Decoder,
    MakeEngine,
    at_most,
    free,
    make_scheduler,
    num_blocks_for,
    replay_trace,
    takes_what_is_free,
    warm_up_requests,
)
from framework.config import describe, with_keywords
from framework.contracts import Engine
from framework.core import Request, Step
from framework.cost.record import Record
from framework.cost.subject import Target
from framework.engine.torch_engine.replica import make_replicas
from framework.measure.serving import max_num_seqs_of
from framework.placement.workers import Workers
from framework.replay import Server
from framework.step_runs import StepRun
from framework.study.arms import Arm
from framework.study.parts import EngineParts
from framework.study.roles import Group

MAX_SERVERS = 2**16  # whose noise does not meet that of another point's seed
ROOM_BYTES = 4 * 2**30  # that stay free of a GPU's memory, for steps and graphs


class EngineCache:
    """Keeps what it has loaded, so that arms that take turns load and warm theirs once.

    On a GPU models and engines stay side by side as far as its memory goes; on a CPU there is one of each. `arms` are
    those that serve: an engine whose KV cache would take what is free gets no more than their seats can fill.
    """

    def __init__(self, device: torch.device, on_progress: Callable[[str], None], arms: Iterable[Arm] = ()) -> None:
        self.device, self.on_progress, self.arms = device, on_progress, list(arms)
        self.models: dict[str, Decoder | Target | Record] = {}
        self.engines: dict[str, Engine] = {}
        self.engine: Engine | None = None  # the last one
        self.warmed: set[tuple[str, str]] = set()
        self.workers: dict[str, Workers] = {}  # of the last arm whose servers had a device each

    def get(self, parts: EngineParts) -> Engine:
        if parts.engine_key not in self.engines:
            self.engines[parts.engine_key] = self.build_where_there_is_room(parts)
        self.engine = self.engines[parts.engine_key]
        self.engine.on_progress = self.on_progress
        return self.engine

    def build_where_there_is_room(self, parts: EngineParts) -> Engine:
        """Beside the others, or else in their place; one that is modelled needs none."""
        if parts.is_modelled:
            return self.build(parts)
        free(self.device)
        beside = self.build_beside(parts) if self.engines else None
        if beside is not None:
            return beside
        self.drop_all_but(parts.model_key)
        return self.build(parts)

    def build_beside(self, parts: EngineParts) -> Engine | None:
        """None unless it is as it would be alone, with enough memory free before and after."""
        if free_bytes(self.device) < ROOM_BYTES:
            return None
        try:
            engine = self.build(parts)
        except (ValueError, torch.OutOfMemoryError):
            return None
        is_whole = has_full_cache(self.limited(parts), engine)
        return engine if is_whole and free_bytes(self.device) >= ROOM_BYTES else None

    def build(self, parts: EngineParts) -> Engine:
        if parts.model_key not in self.models:
            self.on_progress("loading the model")
            self.models[parts.model_key] = parts.target() if parts.is_modelled else parts.load_model(self.device)
        self.on_progress("building the engine")
        return self.limited(parts)(model=self.models[parts.model_key])

    def limited(self, parts: EngineParts) -> MakeEngine:
        """The engine with room for two full contexts per seat: static batches may reserve as much."""
        seats = [num_seats_on(arm, parts.engine_key) for arm in self.arms]
        if not any(seats) or not takes_what_is_free(parts.engine):
            return parts.engine
        num_tokens = 2 * self.models[parts.model_key].config.max_model_len
        return at_most(parts.engine, num_blocks_for(parts.engine, max(seats), num_tokens))

    def drop_all_but(self, model_key: str) -> None:
        """Forget every engine, and the models but one; the memory is free unless somebody else keeps them."""
        self.engine = None
        self.engines.clear()
        self.warmed.clear()
        self.models = {key: model for key, model in self.models.items() if key == model_key}
        free(self.device)

    def get_of_server(self, arm: Arm, group: Group) -> Engine:
        """What each server of this group of the arm's has, or its equal: the engine that is kept, or a share of it.

        Raises ValueError where a server's share would be nothing.
        """
        engine = self.get(group)
        return make_replicas(engine, arm.num_servers)[0] if takes_turns(arm, engine) else engine

    def get_servers(self, arm: Arm, on_step: Callable[[Step | StepRun], None] | None, seed: int = 0) -> list[Server]:
        """The arm's servers for a point with this seed, each with an engine and a scheduler of its own.

        Measured ones share one engine. Raises ValueError as get_of_server.
        """
        servers: list[Server] = []
        first = self.get(arm)
        shares = make_replicas(first, arm.num_servers) if takes_turns(arm, first) else None
        for group in arm.groups:
            first, like = self.get(group), None
            model = self.models[group.model_key]
            for index in range(len(servers), len(servers) + group.num):
                engine: Engine = first
                if shares is not None:
                    engine = shares[index]
                elif index or group.is_modelled:
                    engine = of_server(group, index, seed)(model=model)
                scheduler = make_scheduler(group.scheduler, engine)
                servers.append(Server(scheduler, engine, index, on_step, arm.view_delay, like))
                like = like or servers[-1]
        return servers

    def num_layers(self, parts: EngineParts) -> int:
        """Of the model that an engine has, or stands for."""
        self.get(parts)
        model = self.models[parts.model_key]
        return (model.target if isinstance(model, Record) else model).config.num_layers

    def warm_up(self, arm: Arm, engine: Engine, requests: list[Request]) -> None:
        """Before an arm's first point, replay some of its requests at once: full batches, then ever smaller ones."""
        key = arm.engine_key, arm.warm_up_key
        if key in self.warmed or arm.is_modelled:
            return
        scheduler = make_scheduler(arm.scheduler, engine)
        replay_trace(warm_up_requests(requests, scheduler.max_num_seqs), scheduler, engine)
        self.warmed.add(key)


def num_seats_on(arm: Arm, engine_key: str) -> int:
    """Of all servers of the arm that have this engine."""
    groups = [group for group in arm.groups if group.engine_key == engine_key]
    return sum(group.num * max_num_seqs_of(group.scheduler) for group in groups)


def takes_turns(arm: Arm, engine: Engine) -> bool:
    """Whether its servers run their steps on this engine by turns, each alone."""
    return (arm.num_servers > 1 or arm.placement == "turns") and engine.timer is not None


def of_server(parts: EngineParts, index: int, seed: int) -> MakeEngine:
    """The engine of the arm's server `index` at a point with this seed; modelled ones each draw noise of their own."""
    if not parts.is_modelled:
        return parts.engine
    return with_keywords(parts.engine, seed=describe(parts.engine)["seed"] + index + MAX_SERVERS * seed)


def has_full_cache(make: MakeEngine, engine: Engine) -> bool:
    """Whether the KV cache that `make` gave the engine is none that depends on what was free."""
    keywords = describe(make)
    if takes_what_is_free(make):
        return False
    limit = keywords.get("max_num_blocks")  # other engines have no such keyword
    return limit is None or engine.num_blocks == limit + engine.num_adapter_slots * engine.blocks_per_adapter


def free_bytes(device: torch.device) -> int:
    """Of a GPU's memory; a CPU counts as full, since several engines would gain nothing there."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
