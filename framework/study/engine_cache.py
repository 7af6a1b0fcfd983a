"""The model and the engine at hand while a study goes from arm to arm, loaded once and warmed before they are timed."""

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from framework.arms import engine_digest, model_digest, with_keywords
from framework.config import describe
from framework.core import Engine, Request, Scheduler, Sequence
from framework.points import digest_of
from framework.replay import replay
from framework.scheduler.adapter_slots import AdapterSlots


def free(device: torch.device) -> None:
    """Give back the device memory of what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def make_model(arm: dict[str, Any], device: torch.device) -> Any:
    """The arm's model on `device`, quantized and with room for adapters as the arm says."""
    return arm["lora"](arm["quantization"](arm["model"](device=device)))


def make_scheduler(make: Callable[..., Scheduler], engine: Engine) -> Scheduler:
    """A scheduler for the KV cache and the adapter slots that the engine has."""
    slots = {"num_adapter_slots": engine.num_adapter_slots} if engine.num_adapter_slots else {}
    return make(num_blocks=engine.num_blocks, block_size=engine.block_size, **slots)


def seat_adapters(engine: Engine, sequences: list[Sequence]) -> dict[int, str]:
    """Give every sequence its adapter's slot; what is to be loaded. ValueError if there are too few slots."""
    slots = AdapterSlots(engine.num_adapter_slots)
    for sequence in sequences:
        if not slots.can_admit(sequence):
            raise ValueError(f"the sequences need more adapters than lora.num_slots={engine.num_adapter_slots}")
        slots.admit(sequence)
    return slots.take_loads()


def make_engine_for(requests: list[Request], engine: partial[Engine], model: Any) -> Engine:
    """An engine whose KV cache holds `requests` in one padded batch and no more, so that others fit beside it."""
    num_slots = max(one.num_prompt_tokens for one in requests) + max(one.num_output_tokens for one in requests)
    num_blocks = len(requests) * -(-num_slots // describe(engine)["block_size"])
    return with_keywords(engine, num_blocks=num_blocks, kv_cache_bytes=None, memory_bytes=None)(model=model)


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
        replay(warm_up_requests(requests, scheduler.max_num_seqs), scheduler, engine)
        self.warmed.add(key)


def warm_up_requests(requests: list[Request], max_num_seqs: int) -> list[Request]:
    """One request per seat, ending one step after the other, so that every decode batch size occurs."""
    return [
        replace(request, arrival_time=0.0, num_output_tokens=min(request.num_output_tokens, index + 1))
        for index, request in enumerate(requests[:max_num_seqs])
    ]
