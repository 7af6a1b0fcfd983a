"""How fast an engine is: its start, single steps against their floors, and attention alone.

Steps are timed over a KV cache of random numbers in shuffled blocks, launched ahead where the engine does so.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import numpy.typing as npt
import torch

from framework.build import Decoder, MakeEngine, MakeModel, seat_adapters
from framework.config import describe
from framework.core import Batch, Request, Sequence, StepResult
from framework.engine.measured import MeasuredEngine, measured
from framework.engine.modelled import check_executes
from framework.engine.torch_engine.kv_cache import attention_modules
from framework.kernels.gpu_attention import DecodeAttention
from framework.kernels.paged_decode import choose_plan
from framework.measure.cases import Case, case_name
from framework.measure.ceilings import Ceilings, measure_ceilings, median_time
from framework.measure.floors import attention_work, model_costs, step_work
from framework.models.llama import Llama
from framework.scheduler.block_manager import BlockManager

NUM_WARM_UP_STEPS = 5

Say = Callable[[str], None]
Times = npt.NDArray[np.float64]  # (num_steps,) seconds


def ceilings_for(model: MakeModel, engine: MakeEngine, device: torch.device) -> Ceilings:
    """What `device` can do in the model's dtype with the engine's number of CPU threads.

    ValueError for an engine that computes no steps.
    """
    check_executes(engine)
    return measure_ceilings(device, getattr(torch, describe(model)["dtype"]), describe(engine)["num_threads"])


def start_engine(
    make_model: Callable[[], Decoder],
    make_engine: MakeEngine,
    max_num_seqs: int,
    on_progress: Say,
) -> tuple[MeasuredEngine, dict[str, float]]:
    """An engine that is ready for batches of `max_num_seqs` and every prompt; the seconds of its model and the rest."""
    started = time.perf_counter()
    on_progress("building the model")
    model = make_model()
    synchronize(model.norm.weight.device)
    built = time.perf_counter()
    engine = measured(make_engine(model=model))
    engine.on_progress = on_progress
    get_ready(engine, max_num_seqs, longest_prompt=engine.max_model_len)
    return engine, {"model": built - started, "engine": time.perf_counter() - built}


def get_ready(engine: MeasuredEngine, max_num_seqs: int, longest_prompt: int = 1) -> None:
    """Compile and capture what decode steps of up to `max_num_seqs` need, and prompts of up to `longest_prompt` tokens.

    Later, smaller batches take what is there. The cache is filled with random numbers: zeros would take less power, and
    so less time.
    """
    engine.begin([Request(0, 0.0, longest_prompt, 0)], max_num_seqs)
    for module in attention_modules(engine.model):
        if module.cache is None:
            raise ValueError("engine.use_cache=false keeps no keys and values: there are no decode steps to time")
        module.cache.fill_randomly()
    synchronize(engine.device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_sizes(sizes: Mapping[str, list[list[int]]], num_steps: int) -> None:
    """ValueError unless `sizes` maps kinds of steps to pairs of sequences and tokens, all of them at least 1."""
    for kind, pairs in sizes.items():
        for pair in pairs:
            if len(pair) != 2:
                raise ValueError(f"a {kind} is [sequences, tokens each], not {pair}")
            if min(pair) < 1:
                raise ValueError(f"a {kind} needs at least 1 sequence and 1 token of each, not {pair[0]} and {pair[1]}")
    if num_steps < 1:
        raise ValueError(f"num_steps {num_steps} must be at least 1")


def measure_cases(
    sizes: Mapping[str, list[list[int]]], engine: MeasuredEngine, num_steps: int, ceilings: Ceilings, say: Say
) -> list[Case]:
    """Measure what fits of `sizes`, kind → [num_seqs, num_tokens] each; tell every result, or why there is none."""
    measures: dict[str, Callable[[MeasuredEngine, int, int, int], Case]] = {
        "decode": measure_decode,
        "prefill": measure_prefill,
        "attention": measure_attention,
    }
    cases = []
    for kind, pairs in sizes.items():
        for num_seqs, num_tokens in pairs:
            reason = why_not(kind, engine, num_seqs, num_tokens + (num_steps if kind == "decode" else 0))
            if reason:
                say(f"{case_name(kind, num_seqs, num_tokens)}: skipped, {reason}")
                continue
            cases.append(measures[kind](engine, num_seqs, num_tokens, num_steps))
            say(cases[-1].line(ceilings))
    return cases


def why_not(kind: str, engine: MeasuredEngine, num_seqs: int, num_tokens: int, num_adapters: int = 0) -> str:
    """Why the engine cannot hold `num_seqs` sequences of `num_tokens` and so many adapters; empty if it can."""
    if kind == "attention" and engine.device.type != "cuda":
        return "the kernel needs a GPU"
    return why_no_room(engine, [num_tokens] * num_seqs, num_adapters)


def why_no_room(engine: MeasuredEngine, lengths: list[int], num_adapters: int = 0) -> str:
    """Why the engine cannot hold sequences of these numbers of tokens and so many adapters; empty if it can."""
    if max(lengths) > engine.max_model_len:
        return f"{max(lengths)} tokens are more than the model's context of {engine.max_model_len}"
    needed = sum(-(-length // engine.block_size) for length in lengths) + num_adapters * engine.blocks_per_adapter
    if needed > engine.num_blocks:
        return f"{needed:,} KV blocks of {engine.block_size} tokens are more than the cache's {engine.num_blocks:,}"
    return ""


def make_sequences(engine: MeasuredEngine, requests: list[Request]) -> list[Sequence]:
    """Sequences with prompts, and blocks for all their tokens, scattered as on a server that has run for a while.

    Blocks in which `seat_adapters` puts their adapters are left alone.
    """
    blocks = BlockManager(engine.num_blocks, engine.block_size)
    first_block = len({request.adapter_id for request in requests} - {None}) * engine.blocks_per_adapter
    blocks.free = list(range(engine.num_blocks - 1, first_block - 1, -1))
    random.Random(0).shuffle(blocks.free)
    sequences = [Sequence(request) for request in requests]
    for sequence in sequences:
        engine.add(sequence)
        blocks.grow(sequence, sequence.request.num_prompt_tokens + sequence.request.num_output_tokens)
    return sequences


def measure_decode(
    engine: MeasuredEngine, num_seqs: int, context: int, num_steps: int, adapter_ids: list[str] | None = None
) -> Case:
    """Decode steps of `num_seqs` sequences, of `context` tokens each in the middle one of the `num_steps` timed.

    They ask in turn for `adapter_ids` (None: for none), which are there before anything is timed.
    """
    first, num_all = first_start(context, num_steps), NUM_WARM_UP_STEPS + num_steps
    names = islice(cycle(adapter_ids or [None]), num_seqs)
    requests = [Request(index, 0.0, first, num_all + 1, adapter_id=name) for index, name in enumerate(names)]
    # Their prompts are never computed, so nothing of that length has to be warm
    engine.begin([replace(request, num_prompt_tokens=1, num_output_tokens=0) for request in requests], num_seqs)
    sequences = make_sequences(engine, requests)
    decode_on(sequences)
    batches = [Batch(sequences, [first + step] * num_seqs, [1] * num_seqs, 0, num_seqs) for step in range(num_all)]
    batches[0].adapter_loads = seat_adapters(engine, sequences)
    device, elapsed = time_steps(engine, batches)
    middle = batches[NUM_WARM_UP_STEPS + num_steps // 2]
    return Case(
        "decode", num_seqs, context, step_work(model_costs(engine.model, engine.kv_dtype), middle), device, elapsed
    )


def first_start(context: int, num_steps: int) -> int:
    """Where the first warm-up step of sequences begins that have `context` tokens in the middle one of `num_steps`."""
    least = least_context(num_steps)
    if context < least:
        raise ValueError(f"context={context} is too short for {num_steps} steps up to it: at least {least}")
    return 1 + context - least


def least_context(num_steps: int) -> int:
    """Tokens of the middle one of `num_steps` at least: all before it, and the warm-up, have a context too."""
    return 2 + num_steps // 2 + NUM_WARM_UP_STEPS


def decode_on(sequences: list[Sequence]) -> None:
    """Let the sequences decode like seats that a static batch goes on computing: no token is waited for."""
    for sequence in sequences:
        sequence.output_token_ids, sequence.is_finished = [0], True


def measure_prefill(engine: MeasuredEngine, num_prompts: int, num_tokens: int, num_steps: int) -> Case:
    """Steps that compute `num_prompts` prompts of `num_tokens` each, the same ones every time."""
    requests = [Request(index, 0.0, num_tokens, 0) for index in range(num_prompts)]
    engine.begin(requests, num_prompts)
    sequences = make_sequences(engine, requests)
    batch = Batch(sequences, [0] * num_prompts, [num_tokens] * num_prompts, num_prompts * num_tokens, 0)
    device, elapsed = time_steps(engine, [batch] * (NUM_WARM_UP_STEPS + num_steps))
    return Case(
        "prefill",
        num_prompts,
        num_tokens,
        step_work(model_costs(engine.model, engine.kv_dtype), batch),
        device,
        elapsed,
    )


def time_steps(engine: MeasuredEngine, batches: list[Batch]) -> tuple[float, float]:
    """Median seconds on the device, and from one step's tokens to the next one's, after the warm-up."""
    device, elapsed = step_times(engine, batches)
    return float(np.median(device[NUM_WARM_UP_STEPS:])), float(np.median(elapsed[NUM_WARM_UP_STEPS:]))


def step_times(engine: MeasuredEngine, batches: list[Batch]) -> tuple[Times, Times]:
    """Of every step the seconds on the device, and those from the tokens of the one before; the first one has none."""
    results, elapsed = take_steps(engine, batches)
    return np.array([result.device for result in results]), elapsed


def take_steps(engine: MeasuredEngine, batches: list[Batch]) -> tuple[list[StepResult], Times]:
    """What every step took, and the seconds from the tokens of the one before; the first one has none."""
    results, ends = [], [math.nan]
    for index in range(len(batches) + engine.num_steps_ahead):
        if index < len(batches):
            engine.launch(batches[index])
        if index >= engine.num_steps_ahead:
            results.append(engine.collect())
            ends.append(engine.timer())
    return results, np.diff(ends)


@torch.inference_mode()
def measure_attention(engine: MeasuredEngine, num_seqs: int, context: int, num_steps: int) -> Case:
    """The decode kernel over the caches of all layers in turn, replayed from one CUDA graph; per launch."""
    model, config = engine.model, engine.model.config
    sequences = make_sequences(engine, [Request(index, 0.0, context, 0) for index in range(num_seqs)])
    tables = torch.tensor([sequence.block_table for sequence in sequences], dtype=torch.int32, device=engine.device)
    seats = torch.arange(num_seqs, dtype=torch.int32, device=engine.device)
    lens = torch.full_like(seats, context)
    plan = choose_plan(lens, config.num_kv_heads)
    attention = DecodeAttention(tables, seats, lens, torch.zeros_like(seats), engine.block_size, plan)
    qkv = torch.randn(num_seqs, sum(config.qkv_sizes), device=engine.device).to(engine.dtype)
    rope = model.rope[context - 1].expand(num_seqs, -1, -1).contiguous() if isinstance(model, Llama) else None
    modules = attention_modules(model)

    def run_all_layers() -> None:
        for module in modules:
            module(qkv, rope, attention)

    run_all_layers()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run_all_layers()
    device = median_time(graph.replay, engine.device, num_steps) / len(modules)
    work = attention_work(model, num_seqs, context, engine.kv_dtype)
    return Case("attention", num_seqs, context, work, device, float("nan"))
