"""From an arm's parts to an engine, a scheduler and a server that replays requests."""

import gc
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from framework.checks import whole
from framework.config import describe, with_keywords
from framework.contracts import Engine, Router, Scheduler
from framework.core import Request, Sequence, Step, Trace
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama
from framework.replay import Clock, Server, replay
from framework.scheduler.adapter_slots import AdapterSlots
from framework.step_runs import StepRun
from framework.trace.source import TraceSource

Decoder = Llama | GPT2
MakeModel = partial[Decoder]  # called with device=
ChangeModel = partial[Decoder]  # called with a model: a quantization, or a way of serving adapters
MakeEngine = partial[Engine]  # called with model=
MakeScheduler = partial[Scheduler]  # called as make_scheduler says
MakeRouter = partial[Router]  # called with the servers of a replay
MakeTrace = partial[Trace]  # called with rate= and seed=

SIZES = ("num_blocks", "kv_cache_bytes", "memory_bytes", "max_num_blocks")  # keywords of an engine's KV cache


def free(device: torch.device) -> None:
    """Give back the device memory of what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def make_scheduler(make: Callable[..., Scheduler], engine: Engine) -> Scheduler:
    """A scheduler for the KV cache and the adapter slots that the engine has; told other limits if it takes them."""
    limits = {"num_adapter_slots": engine.num_adapter_slots} if engine.num_adapter_slots else {}
    keywords = inspect.signature(make).parameters
    if engine.blocks_per_adapter:
        if "blocks_per_adapter" not in keywords:
            raise ValueError(
                "lora.memory=unified: this scheduler has no keyword blocks_per_adapter, so it would not keep KV blocks "
                "and adapters apart; take memory=split"
            )
        limits["blocks_per_adapter"] = engine.blocks_per_adapter
    others = {"max_model_len": engine.max_model_len, "num_swap_blocks": engine.num_swap_blocks}
    limits |= {name: limit for name, limit in others.items() if name in keywords}
    return make(num_blocks=engine.num_blocks, block_size=engine.block_size, **limits)


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
    num_blocks = num_blocks_for(engine, len(requests), num_slots)
    return with_keywords(engine, num_blocks=num_blocks, kv_cache_bytes=None, memory_bytes=None)(model=model)


def num_blocks_for(engine: partial[Engine], num_seqs: int, num_tokens: int) -> int:
    """KV blocks that hold `num_seqs` sequences of `num_tokens`."""
    return num_seqs * -(-num_tokens // whole("engine.block_size", describe(engine)["block_size"]))


def takes_what_is_free(engine: partial[Engine]) -> bool:
    """Whether the KV cache's size is left to the engine, and may be limited by `max_num_blocks`."""
    keywords = describe(engine)
    return "max_num_blocks" in keywords and all(keywords[name] is None for name in SIZES)


def at_most(engine: partial[Engine], num_blocks: int) -> partial[Engine]:
    """If the size is left to the engine: one with no more than `num_blocks` KV blocks, so that others fit beside it."""
    return with_keywords(engine, max_num_blocks=num_blocks) if takes_what_is_free(engine) else engine


def warm_up_requests(requests: list[Request], max_num_seqs: int) -> list[Request]:
    """One request per seat, ending one step after the other, so that every decode batch size occurs."""
    return [
        replace(request, arrival_time=0.0, think_time=None, num_output_tokens=min(request.num_output_tokens, index + 1))
        for index, request in enumerate(requests[:max_num_seqs])
    ]


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one; asking for `cuda` without a GPU is an error."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device} is not one of auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no CUDA device; use device=cpu or device=auto")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def replay_trace(
    requests: list[Request],
    scheduler: Scheduler,
    engine: Engine,
    clock: Clock = "virtual",
    on_step: Callable[[Step | StepRun], None] | None = None,
) -> tuple[list[Sequence], list[Step]]:
    """Serve `requests`, sorted by arrival time, on one server; one Sequence per request and one Step per batch."""
    server = Server(scheduler, engine, on_step=on_step)
    sequences = replay(TraceSource(requests), [server], lambda sequence: server, clock)
    return sequences, server.steps
