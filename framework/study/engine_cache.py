"""The model and the engine at hand while a study goes from arm to arm, loaded once and warmed before they are timed."""

from collections.abc import Callable
from typing import Any

import torch

from framework.build import free, make_model, make_scheduler, replay_trace, warm_up_requests
from framework.config import describe
from framework.core import Engine, Request
from framework.study.arms import engine_digest, model_digest
from framework.study.files import digest_of


class EngineCache:
    """Keeps one model and one engine, so that neighbouring arms which share them load them once."""

    def __init__(self, device: torch.device, on_progress: Callable[[str], None]) -> None:
        self.device, self.on_progress = device, on_progress
        self.model_key = self.engine_key = ""
        self.model: Any = None
        self.engine: Engine | None = None
        self.warmed: set[str] = set()

    def get(self, arm: dict[str, Any]) -> Engine:
        model_key, engine_key = model_digest(arm), engine_digest(arm)
        if engine_key != self.engine_key or self.engine is None:
            self.engine, self.engine_key = None, ""
            self.warmed.clear()
            if model_key != self.model_key:
                self.model, self.model_key = None, ""
            free(self.device)
            if self.model is None:
                self.model, self.model_key = make_model(arm, self.device), model_key
            self.engine, self.engine_key = arm["engine"](model=self.model), engine_key
            self.engine.on_progress = self.on_progress
        return self.engine

    def warm_up(self, arm: dict[str, Any], engine: Engine, requests: list[Request]) -> None:
        """Before an arm's first point, replay some of its requests at once: full batches, then ever smaller ones."""
        scheduler = make_scheduler(arm["scheduler"], engine)
        key = digest_of(describe([arm["scheduler"], arm["trace"]]))
        if key in self.warmed:
            return
        replay_trace(warm_up_requests(requests, scheduler.max_num_seqs), scheduler, engine)
        self.warmed.add(key)
