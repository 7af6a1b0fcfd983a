"""Keeps the model and the engine while a study goes from arm to arm, and warms them up before they are timed."""

from collections.abc import Callable

import torch

from framework.build import Decoder, free, make_scheduler, replay_trace, warm_up_requests
from framework.core import Engine, Request, Step
from framework.replay import Server, check_several
from framework.study.arms import Arm, EngineParts


class EngineCache:
    """Keeps one model and one engine, so that neighbouring arms which share them load them once."""

    def __init__(self, device: torch.device, on_progress: Callable[[str], None]) -> None:
        self.device, self.on_progress = device, on_progress
        self.model_key = self.engine_key = ""
        self.model: Decoder | None = None
        self.engine: Engine | None = None
        self.warmed: set[str] = set()

    def get(self, parts: EngineParts) -> Engine:
        if parts.engine_key != self.engine_key or self.engine is None:
            self.engine, self.engine_key = None, ""
            self.warmed.clear()
            if parts.model_key != self.model_key:
                self.model, self.model_key = None, ""
            free(self.device)
            if self.model is None:
                self.model, self.model_key = parts.load_model(self.device), parts.model_key
            self.engine, self.engine_key = parts.engine(model=self.model), parts.engine_key
            self.engine.on_progress = self.on_progress
        return self.engine

    def get_servers(self, arm: Arm, on_step: Callable[[Step], None] | None) -> list[Server]:
        """The arm's servers, each with an engine and a scheduler of its own.

        Raises ValueError for several servers whose engine measures its steps.
        """
        engines = [self.get(arm)]
        check_several(arm.servers, engines[0], arm.clock)
        assert self.model is not None
        engines += [arm.engine(model=self.model) for _ in range(arm.servers - 1)]
        return [
            Server(make_scheduler(arm.scheduler, engine), engine, index, on_step)
            for index, engine in enumerate(engines)
        ]

    def warm_up(self, arm: Arm, engine: Engine, requests: list[Request]) -> None:
        """Before an arm's first point, replay some of its requests at once: full batches, then ever smaller ones."""
        if arm.warm_up_key in self.warmed:
            return
        scheduler = make_scheduler(arm.scheduler, engine)
        replay_trace(warm_up_requests(requests, scheduler.max_num_seqs), scheduler, engine)
        self.warmed.add(arm.warm_up_key)
