"""Benchmarks: `make bench` measures them, `make test` runs each once. Times are never asserted; work counts are."""

import csv
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from framework import prefixes, step_runs
from framework.build import replay_trace
from framework.contracts import Source
from framework.core import Batch, Request, Sequence, StepResult
from framework.engine.modelled import ModelledEngine
from framework.engine.torch_engine import TorchEngine
from framework.measure.metrics import summarize
from framework.measure.replay_tables import request_table, step_table
from framework.models.loading import load_model
from framework.paths import ROOT
from framework.replay import Server, replay
from framework.router.least_outstanding import least_outstanding
from framework.scheduler.continuous import ContinuousScheduler
from framework.study import parquet
from framework.study.request_rows import write_replay
from framework.trace.files import read_azure, read_mooncake, read_table
from framework.trace.source import TraceSource
from tests.cost_models import MODEL, kind_cost, target, write_model
from tests.fake_engine import FakeEngine
from tests.quantization.small_models import LLAMA
from tests.scheduler.orders.shipped import shipped_order

pytestmark = pytest.mark.slow
LONG = partial(MODEL.func, **MODEL.keywords | {"config": LLAMA | {"max_position_embeddings": 1 << 20}})
TRACES = ROOT.parent / "shared" / "traces"
AZURE = TRACES / "AzureLLMInferenceTrace_conv.csv"
MOONCAKE = TRACES / "mooncake_fast25_conversation.jsonl"


class ConstantEngine(FakeEngine):
    """As little work as an engine can do, at a large model's speed: 10 ms a step and 20 µs a prompt token."""

    def launch(self, batch: Batch) -> None:
        elapsed = 0.010 + 20e-6 * batch.num_prefill_tokens
        self.in_flight.append(StepResult([7] * len(batch.sequences), elapsed))


def azure_hour() -> list[Request]:
    """The Azure conversation hour; where its file is not at hand, as many requests of its mean lengths and rate."""
    if AZURE.exists():
        return read_azure(AZURE).requests
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(3502 / 19366, 19366)).tolist()
    prompts = rng.geometric(1 / 1155, 19366).clip(1, 14000).tolist()
    outputs = rng.geometric(1 / 211, 19366).clip(1, 1000).tolist()
    return list(map(Request, range(19366), times, prompts, outputs))


@pytest.mark.nightly
def test_replay_of_the_azure_conversation_hour(benchmark):
    requests = azure_hour()
    engine = ConstantEngine(num_blocks=100_000, block_size=16)

    def run():
        scheduler = ContinuousScheduler(engine.num_blocks, 16, max_num_seqs=256, max_num_batched_tokens=16384)
        return replay_trace(requests, scheduler, engine)

    sequences, steps = benchmark.pedantic(run, rounds=3)
    assert all(sequence.is_finished for sequence in sequences)
    assert sum(step.num_output_tokens for step in steps) == sum(request.num_output_tokens for request in requests)
    assert sequences[-1].token_times[-1] < 1.02 * requests[-1].arrival_time + 20  # a stable load: no backlog at the end
    tokens = sum(request.num_output_tokens for request in requests)
    benchmark.extra_info |= {"num_requests": len(requests), "num_steps": len(steps), "num_output_tokens": tokens}


class OneByOne(ContinuousScheduler):
    """Decides the same, and does not promise for how many steps."""


@pytest.mark.nightly
@pytest.mark.parametrize("options", [{}, {"steps": "mixed", "whole_prompts": False}], ids=["continuous", "mixed"])
@pytest.mark.parametrize("make_scheduler", [OneByOne, ContinuousScheduler], ids=["step by step", "steps at once"])
def test_modelled_replay_of_the_azure_conversation_hour(benchmark, tmp_path, options, make_scheduler):
    """At an 8B model's speed on a large GPU, with noise: what a step costs is found in time that is constant."""
    requests, ratios = azure_hour(), (0.99, 1.0, 1.02)
    kinds = {kind: kind_cost(kind, 0.0042, 20e-6, 1e-8, ratios) for kind in ("decode", "prompt")}
    engine = ModelledEngine(target(model=LONG), path=str(write_model(tmp_path, kinds=kinds)), num_blocks=100_000)

    def run():
        limits = {"max_num_seqs": 256, "max_num_batched_tokens": 16384}
        server = Server(make_scheduler(engine.num_blocks, 4, **limits, **options), engine)
        return replay(TraceSource(requests), [server], lambda sequence: server), server.log

    sequences, log = benchmark.pedantic(run, rounds=1)
    assert all(sequence.is_finished for sequence in sequences)
    num_steps = engine.outside.num_steps
    assert len(log.columns()["elapsed"]) == num_steps
    assert len(log) == num_steps if make_scheduler is OneByOne else len(log) < num_steps / 5
    benchmark.extra_info |= {"num_requests": len(requests), "num_steps": num_steps, "num_taken": len(log)}


def like_the_azure_hour(num_requests: int) -> list[Request]:
    """At 20 requests/s, with lengths of that hour's means."""
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(1 / 20, num_requests)).tolist()
    prompts = rng.geometric(1 / 1155, num_requests).clip(1, 14000).tolist()
    outputs = rng.geometric(1 / 211, num_requests).clip(1, 1000).tolist()
    return list(map(Request, range(num_requests), times, prompts, outputs))


def modelled_server(folder: Path, index: int = 0) -> Server:
    kinds = {kind: kind_cost(kind, 0.0042, 20e-6, 1e-8, (0.99, 1.0, 1.02)) for kind in ("decode", "prompt")}
    options = {"num_blocks": 100_000, "block_size": 16}
    engine = ModelledEngine(target(model=LONG), path=str(write_model(folder, kinds=kinds)), seed=index, **options)
    return Server(ContinuousScheduler(**options, max_num_seqs=256, max_num_batched_tokens=16384), engine, index)


@pytest.mark.nightly
@pytest.mark.parametrize("num_requests", [20_000, 80_000])
def test_modelled_replay_of_many_requests(benchmark, tmp_path, num_requests):
    """What is taken at once grows with their number."""
    requests = like_the_azure_hour(num_requests)
    outputs = [request.num_output_tokens for request in requests]

    def run():
        server = modelled_server(tmp_path)
        return replay(TraceSource(requests), [server], lambda sequence: server), server

    sequences, server = benchmark.pedantic(run, rounds=1)
    log, engine = server.log, server.engine
    assert sum(len(sequence.token_times) for sequence in sequences) == sum(outputs)
    assert len(log) < 3 * num_requests
    benchmark.extra_info |= {
        "num_requests": num_requests,
        "num_steps": engine.outside.num_steps,
        "num_taken": len(log),
        "num_output_tokens": sum(outputs),
    }


@pytest.mark.nightly
@pytest.mark.parametrize("num_servers", [1, 64])
def test_modelled_replay_of_many_servers(benchmark, tmp_path, num_servers):
    """What one server does cuts no other one's steps: about as much is taken at once, however many there are."""
    requests = like_the_azure_hour(6000)
    requests = [replace(one, arrival_time=2 * one.arrival_time / num_servers) for one in requests]

    def run():
        servers = [modelled_server(tmp_path, index) for index in range(num_servers)]
        return replay(TraceSource(requests), servers, least_outstanding(servers)), servers

    sequences, servers = benchmark.pedantic(run, rounds=1)
    num_taken = sum(len(server.log) for server in servers)
    assert all(sequence.is_finished for sequence in sequences)
    assert num_taken < 7 * len(requests)
    num_steps = sum(server.engine.outside.num_steps for server in servers)
    benchmark.extra_info |= {"num_requests": len(requests), "num_steps": num_steps, "num_taken": num_taken}


@pytest.mark.nightly
@pytest.mark.parametrize("is_written", [False, True])
def test_memory_of_a_modelled_replay(benchmark, tmp_path, monkeypatch, is_written):
    """It grows with the requests: by 8 bytes for a token, unless these are written meanwhile, and by all else."""
    monkeypatch.setattr(step_runs, "KEPT", 256)
    monkeypatch.setattr(parquet, "ROWS", 250)
    bytes_held, num_tokens, num_steps = {}, {}, {}

    def run(num_requests: int) -> None:
        requests, server = like_the_azure_hour(num_requests), modelled_server(tmp_path)

        def serve(source: Source) -> list[Sequence]:
            return replay(source, [server], lambda sequence: server)

        tracemalloc.start()
        try:
            source = TraceSource(requests, compacts=True)
            if is_written:
                with (tmp_path / "requests.parquet").open("wb") as file:
                    write_replay(file, source, serve, requests, {}, may_forget=True)
            else:
                serve(source)
            bytes_held[num_requests] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        num_tokens[num_requests] = 0 if is_written else sum(request.num_output_tokens for request in requests)
        num_steps[num_requests] = server.engine.outside.num_steps

    for num_requests in (1000, 2000):
        run(num_requests)
    benchmark.pedantic(run, args=(4000,), rounds=1)
    grown, tokens = (values[4000] - values[2000] for values in (bytes_held, num_tokens))
    before = bytes_held[2000] - bytes_held[1000]
    per_request = (grown - 8 * tokens) / 2000
    assert per_request < 1500
    assert grown < 2.2 * before
    benchmark.extra_info |= {"bytes_per_request": grown / 2000, "num_steps": num_steps[4000]}


class CuttingEngine(FakeEngine):
    """10 ms a step and 5 µs a prompt token, for prompts that are cut."""

    def launch(self, batch: Batch) -> None:
        tokens = [7 if sequence.num_computed_tokens >= sequence.num_tokens else None for sequence in batch.sequences]
        self.in_flight.append(StepResult(tokens, 0.010 + 5e-6 * batch.num_prefill_tokens))


def mooncake_hour() -> list[Request]:
    """Mooncake's conversation hour; where its file is not at hand, as many turns of its mean lengths and rate.

    Two of five go on from one of the last 3,000.
    """
    if MOONCAKE.exists():
        return read_mooncake(MOONCAKE).requests
    rng, texts, requests = np.random.default_rng(0), [()], []
    for index in range(12_031):
        before = texts[rng.integers(max(len(texts) - 3000, 0), len(texts))] if rng.random() < 0.4 else ()
        texts.append(before + tuple(range(index * 1000, index * 1000 + int(rng.geometric(1 / 14)))))
        prompt = min(512 * len(texts[-1]), 120_000)
        requests.append(Request(index, 0.3 * index, prompt, int(rng.geometric(1 / 343)), prefix_ids=texts[-1]))
    return requests


@pytest.mark.nightly
@pytest.mark.parametrize("block_size", [16, 512])
def test_replay_of_mooncakes_conversation_hour(benchmark, block_size):
    """With a prefix cache of 3 million tokens."""
    requests = mooncake_hour()
    engine = CuttingEngine(num_blocks=3_000_000 // block_size, block_size=block_size)
    options = {"max_num_seqs": 256, "max_num_batched_tokens": 8192, "steps": "mixed", "whole_prompts": False}

    def run():
        scheduler = ContinuousScheduler(engine.num_blocks, block_size, prefix_cache="lru", **options)
        return replay_trace(requests, scheduler, engine)

    sequences, steps = benchmark.pedantic(run, rounds=1)
    num_prompt_tokens = sum(request.num_prompt_tokens for request in requests)
    num_cached_tokens = sum(sequence.num_cached_tokens for sequence in sequences)
    assert all(sequence.is_finished for sequence in sequences)
    assert sum(step.num_prefill_tokens for step in steps) >= num_prompt_tokens - num_cached_tokens
    assert num_cached_tokens > 0.05 * num_prompt_tokens
    assert max(step.num_cached_blocks + step.num_used_blocks for step in steps) <= engine.num_blocks
    benchmark.extra_info |= {
        "num_requests": len(requests),
        "num_steps": len(steps),
        "num_prompt_tokens": num_prompt_tokens,
        "num_cached_tokens": num_cached_tokens,
    }


def test_step_behind_a_prompt_that_a_prefix_cache_knows_and_that_has_no_room(benchmark, monkeypatch):
    """The first of those waiting is looked up at every step: as one run of 60,000 blocks, whose keys are made once."""
    num_keys = 0

    def key_of(*names):
        nonlocal num_keys
        num_keys += 1
        return real_key_of(*names)

    real_key_of = prefixes.key_of
    monkeypatch.setattr(prefixes, "key_of", key_of)
    options = {"max_num_batched_tokens": 1 << 20, "prefix_cache": "lru", "watermark": 0.0}
    scheduler = ContinuousScheduler(61_000, 16, **options)
    names = {"prefix_ids": tuple(range(1875))}
    scheduler.add(Sequence(Request(0, 0.0, 960_000, 1 << 40, **names)))
    scheduler.postprocess(scheduler.schedule(0.0), [7], 0.0)
    for index in range(1, 100_001):
        scheduler.add(Sequence(Request(index, 0.0, 980_000, 1, **names)))

    def step():
        batch = scheduler.schedule(0.0)
        scheduler.postprocess(batch, [7], 0.0)
        return batch

    step()
    num_keys = 0
    batch = benchmark.pedantic(step, rounds=160)
    assert (batch.num_decode_tokens, len(scheduler.waiting)) == (1, 100_000)
    assert num_keys <= 160 // 16  # of what the running sequence writes
    benchmark.extra_info |= {"num_blocks": 60_000, "num_waiting": 100_000}


@pytest.mark.parametrize("num_running", [16, 256, 4096])
def test_scheduler_step_with_many_waiting(benchmark, num_running):
    scheduler = ContinuousScheduler(1_000_000, 16, max_num_seqs=num_running, max_num_batched_tokens=1 << 20)
    for index in range(num_running + 100_000):
        scheduler.add(Sequence(Request(index, 0.0, 8, 1 << 40)))
    tokens = [7] * num_running
    scheduler.postprocess(scheduler.schedule(0.0), tokens, 0.0)

    def step():
        batch = scheduler.schedule(0.0)
        scheduler.postprocess(batch, tokens, 0.0)
        return batch

    batch = benchmark.pedantic(step, rounds=100, warmup_rounds=1)
    assert batch.num_decode_tokens == num_running
    assert len(scheduler.waiting) == 100_000
    benchmark.extra_info |= {"num_running": num_running, "num_waiting": 100_000}


@pytest.mark.parametrize("num_running", [16, 256, 4096])
def test_mixed_scheduler_step_with_many_waiting(benchmark, num_running):
    """All but one seat decode; the last one's prompt goes on in every step, and 100,000 wait behind it."""
    scheduler = ContinuousScheduler(
        10_000_000,
        16,
        max_num_seqs=num_running,
        max_num_batched_tokens=num_running + 15,
        steps="mixed",
        whole_prompts=False,
    )
    lengths = [8] * (num_running - 1) + [1_000_000] * 100_001
    for index, num_prompt_tokens in enumerate(lengths):
        scheduler.add(Sequence(Request(index, 0.0, num_prompt_tokens, 1 << 40)))

    def step():
        batch = scheduler.schedule(0.0)
        is_cut = scheduler.split is not None
        scheduler.postprocess(batch, [7] * (len(batch.sequences) - is_cut) + [None] * is_cut, 0.0)
        return batch

    while len(scheduler.running) < num_running:
        step()
    batch = benchmark.pedantic(step, rounds=100, warmup_rounds=1)
    assert (batch.num_decode_tokens, batch.num_prefill_tokens) == (num_running - 1, 16)
    assert len(scheduler.waiting) == 100_000
    benchmark.extra_info |= {"num_running": num_running, "num_waiting": 100_000}


@pytest.mark.parametrize("order", ["fcfs", "srpt", "mlfq", "vtc"])
def test_scheduler_step_in_an_order_with_many_waiting(benchmark, order):
    """All seats decode; who waits belongs to 27 clients and takes nobody's place."""
    options = {"max_num_batched_tokens": 1 << 20, "order": shipped_order(order)}
    scheduler = ContinuousScheduler(1_000_000, 16, max_num_seqs=256, **options)
    for index in range(256 + 20_000):
        scheduler.add(Sequence(Request(index, 0.0, 8, 1 << 40, client_id=f"client-{index % 27}")))

    def step():
        batch = scheduler.schedule(0.0)
        scheduler.postprocess(batch, [7] * len(batch.sequences), 0.0)
        return batch

    while len(scheduler.running) < 256:
        step()
    batch = benchmark.pedantic(step, rounds=100, warmup_rounds=1)
    assert len(scheduler.running) == 256
    assert len(scheduler.waiting) == 20_000
    benchmark.extra_info |= {"num_running": batch.num_decode_tokens, "num_waiting": 20_000}


@pytest.fixture(scope="module")
def million_rows(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("trace") / "million.csv"
    columns = {
        "arrival_time": np.cumsum(rng.exponential(0.1, 1_000_000)),
        "num_prompt_tokens": rng.integers(1, 2000, 1_000_000),
        "num_output_tokens": rng.integers(1, 500, 1_000_000),
    }
    pd.DataFrame(columns).to_csv(path, index=False, quoting=csv.QUOTE_NONE)
    return path


@pytest.mark.nightly
def test_read_a_million_rows(benchmark, million_rows):
    trace = benchmark.pedantic(read_table, args=(million_rows,), rounds=1)
    assert len(trace.requests) == 1_000_000
    benchmark.extra_info |= {"num_rows": 1_000_000, "num_bytes": million_rows.stat().st_size}


@pytest.mark.nightly
def test_metrics_of_a_million_requests(benchmark):
    rng = np.random.default_rng(0)
    num_requests, num_tokens = 1_000_000, 4
    arrivals = np.cumsum(rng.exponential(0.001, num_requests))
    times = arrivals[:, None] + np.cumsum(rng.exponential(0.02, (num_requests, num_tokens)), axis=1)
    table = pd.DataFrame({"arrival_time": arrivals, "first_token_time": times[:, 0], "finish_time": times[:, -1]})
    table = table.assign(num_prompt_tokens=100, num_output_tokens=num_tokens, num_preemptions=0, num_cached_tokens=0)
    table["scheduled_time"] = arrivals
    table["ttft"] = times[:, 0] - arrivals
    table["e2e"] = times[:, -1] - arrivals
    table["tpot"] = (times[:, -1] - times[:, 0]) / (num_tokens - 1)
    table["normalized_latency"] = table["e2e"] / num_tokens
    table = table.assign(refused=None, num_swaps=0, client_id=None)
    table["token_times"] = list(times)
    steps = pd.DataFrame({"start_time": times[::10, 0], "elapsed": 0.01, "num_seqs": 10, "server": 0})
    table["server"] = 0
    numbers = benchmark.pedantic(summarize, args=(table, steps, {"ttft": 0.05}), rounds=1)
    assert numbers["num_completed"] == num_requests
    assert 0 < numbers["slo_attainment"] < 1
    benchmark.extra_info |= {"num_requests": num_requests, "num_gaps": num_requests * (num_tokens - 1)}


def test_tables_of_ten_thousand_requests(benchmark):
    engine = ConstantEngine(num_blocks=100_000, block_size=16)
    requests = [Request(index, 0.01 * index, 100, 50) for index in range(10_000)]
    sequences, steps = replay_trace(requests, ContinuousScheduler(engine.num_blocks, 16), engine)
    table, step_rows = benchmark.pedantic(lambda: (request_table(sequences), step_table(steps)), rounds=1)
    assert len(table) == 10_000
    assert len(step_rows) == len(steps)
    benchmark.extra_info |= {"num_requests": 10_000, "num_steps": len(steps)}


TINY = {
    "model_type": "llama", "vocab_size": 256, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize("num_seqs", [1, 8, 32])
def test_decode_step_of_the_cpu_engine(benchmark, num_seqs):
    cpu = torch.device("cpu")
    options = {"path": None, "weights": "random", "dtype": "float32", "seed": 0, "max_model_len": None}
    engine = TorchEngine(load_model(**options, config=TINY, device=cpu))
    requests = [Request(index, 0.0, 128, 64) for index in range(num_seqs)]
    scheduler = ContinuousScheduler(engine.num_blocks, engine.block_size, max_num_batched_tokens=1 << 20)
    engine.begin(requests, num_seqs)
    for sequence in map(Sequence, requests):
        engine.add(sequence)
        scheduler.add(sequence)
    prefill = scheduler.schedule(0.0)
    scheduler.postprocess(prefill, engine.step(prefill).token_ids, 0.0)
    decode = scheduler.schedule(0.0)
    result = benchmark.pedantic(engine.step, args=(decode,), rounds=20, warmup_rounds=3)
    assert len(result.token_ids) == num_seqs
    num_parameters = sum(parameter.numel() for parameter in engine.model.parameters())
    benchmark.extra_info |= {"num_seqs": num_seqs, "num_parameters": num_parameters, "context": 129}
