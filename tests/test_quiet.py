"""Steps that are taken at once leave, to the last bit, what the same steps leave one by one."""

import inspect
import random
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

import framework.scheduler
from framework.contracts import HoldingRouter
from framework.core import Request, Step
from framework.engine.modelled import ModelledEngine
from framework.quiet import knows_beforehand
from framework.replay import Server, replay
from framework.router.least_tokens import least_tokens
from framework.router.round_robin import round_robin
from framework.router.shared_queue import shared_queue
from framework.scheduler.continuous import ContinuousScheduler
from framework.step_runs import StepRun
from framework.trace.source import TraceSource
from tests.contracts.implementations import implementations
from tests.cost.test_subject import ADAPTERS
from tests.cost_models import kind_cost, target, write_model
from tests.fake_engine import FakeEngine
from tests.scheduler.orders.shipped import ORDERS, shipped_order

NUM_CASES, NUM_PARTS = 1000, 100
ODD: dict[str, dict[str, Any]] = {  # options of orders: sums that are not exact, levels that are soon used up
    "vtc": {"prompt_weight": 0.3, "output_weight": 0.7},
    "lcf": {"output_weight": 1.1},
    "mlfq": {"prompt_tokens_per_step": 16, "max_wait": 0.5},
    "rpm": {"limit": 2, "window": 1.0},
}
SCHEDULERS = [one for one in implementations(framework.scheduler, "quiet_steps") if "quiet_steps" in vars(one)]


def random_requests(rng: random.Random, num_adapters: int) -> list[Request]:
    """Bursts and silences, long outputs, common beginnings, conversations, stop tokens that never come."""
    now, requests = 0.0, []
    for index in range(rng.randint(1, 25)):
        now += rng.choice([0.0, rng.expovariate(20), rng.expovariate(2), rng.expovariate(0.3)])
        prompt, output, name = rng.randint(1, 40), rng.randint(1, 90), rng.randrange(num_adapters + 1)
        follows = index > 0 and rng.random() < 0.15 and requests[-1].session_id is not None
        before = requests[-1] if follows else None
        if before is not None:
            prompt += before.num_prompt_tokens + before.num_output_tokens
        requests.append(
            Request(
                index,
                now if before is None else before.arrival_time,
                prompt,
                output,
                adapter_id=f"adapter-{name}" if name else None,
                prefix_ids=() if before is not None else tuple(rng.choices(range(3), k=-(-prompt // 8))),
                prefix_block_size=8,
                stop_token_ids=frozenset({0}) if rng.random() < 0.2 else frozenset(),
                session_id=f"session-{index}" if before is None else before.session_id,
                priority=rng.randrange(3),
                client_id=rng.choice(["a", "b", None]),
                turn=1 if before is None else before.turn + 1,
                think_time=None if before is None else rng.choice([0.0, 0.01, 1.0]),
            )
        )
    return sorted(requests, key=lambda request: request.arrival_time)


def random_case(rng: random.Random, folder) -> tuple[partial, dict[str, Any], list[Request], int, Any, float]:
    """An engine, a scheduler's keywords, what they serve, with how many servers, their router and what it sees."""
    block_size, num_adapters = rng.choice([1, 4, 16]), rng.choice([0, 0, 3])
    requests = random_requests(rng, num_adapters)
    longest = max(-(-(one.num_prompt_tokens + one.num_output_tokens) // block_size) for one in requests)
    num_blocks = longest + rng.choice([0, 3, 30, 3000])
    served = target(lora=ADAPTERS) if num_adapters else target()
    kinds = {
        "decode": kind_cost(
            "decode", 0.011, 3e-5, 1e-7, (0.97, 1.0, 1.1), 1e-4, rng.choice([0.0, 0.005, 0.0113]), rng.choice([1e9, 60])
        ),
        "prompt": kind_cost(
            "prompt",
            0.02,
            1e-4,
            0.0,
            (0.9, 1.0, 1.3),
            2e-4,
            rng.choice([0.0, 0.005, 0.03]),
            loaded_rows=rng.choice([0.0, 3e-8]),
        ),
    }
    sizes = rng.choice([{}, {"decode": [1, 2, 4, 8]}])
    path = write_model(folder, kinds=kinds, sizes=sizes, num_steps_ahead=rng.choice([0, 1]), subject=served.subject)
    engine = partial(
        ModelledEngine, served, path=str(path), num_blocks=num_blocks, block_size=block_size,
        num_swap_blocks=longest + 9, noise=rng.random() < 0.7,
    )  # fmt: skip
    max_num_seqs, order = rng.choice([1, 3, 8, 32]), rng.choice(["fcfs"] * len(ORDERS) + ORDERS)
    options: dict[str, Any] = {
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": rng.choice([max_num_seqs, 40, 500]) if max_num_seqs < 32 else 64,
        "steps": rng.choice(["prompts_first", "mixed", "alternate"]),
        "whole_prompts": rng.random() < 0.5,
        "watermark": rng.choice([0.0, 0.05]),
        "prefix_cache": rng.choice([None, None, "lru", "lfu", "fifo"]),
        "reservation": rng.choice(["paged", "paged", "oracle"]),
        "preemption": rng.choice(["recompute", "swap"]),
        "prefetch": rng.random() < 0.5,
        "adapter_cycle_time": rng.choice([None, 0.1]) if order == "fcfs" else None,
        "order": shipped_order(order, **ODD.get(order, {})),
        "num_swap_blocks": longest + 9,
        "num_adapter_slots": 4 if num_adapters else 0,
    }
    router, view_delay = rng.choice([(least_tokens, 0.0), (least_tokens, 0.05), (shared_queue, 0.0)])
    return engine, options, requests, rng.choice([1, 1, 2]), router, view_delay


def one_by_one(scheduler_type: type) -> type:
    """A class that decides the same, and does not promise that it does."""
    return type("OneByOne", (scheduler_type,), {})


def serve(make_scheduler, make_engine, options, requests, num_servers, make_router, view_delay):
    servers = [
        Server(make_scheduler(engine.num_blocks, engine.block_size, **options), engine, index, view_delay=view_delay)
        for index in range(num_servers)
        for engine in [make_engine(seed=index)]
    ]
    sequences = replay(TraceSource(requests), servers, make_router(servers))
    return sequences, servers


def facts(sequences, servers) -> list[object]:
    """All that a replay leaves, with the state in which its schedulers and engines end."""
    names = [name for name in sequences[0].__slots__ if name not in ("request", "previous")]
    rows = [[one.request.request_id, *(getattr(one, name) for name in names)] for one in sequences]
    blocks = [(server.scheduler.blocks.free, server.scheduler.num_cached_blocks) for server in servers]
    orders = [states(server.scheduler.order) for server in servers]
    loads = [states(server.load) for server in servers]
    outside = [vars(server.engine.outside) for server in servers]
    return [rows, [server.steps for server in servers], blocks, orders, loads, outside]


def states(kept: object) -> dict[str, object]:
    """What it has counted."""
    return {name: vars(kept).get(name) for name in ("counters", "levels", "limits", "reports", "num_told_tokens")}


@pytest.mark.parametrize("scheduler_type", SCHEDULERS)
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.nightly) for part in range(1, NUM_PARTS))])
def test_replays_are_the_same_as_step_by_step(part, scheduler_type, tmp_path):
    num_taken = num_steps = 0
    taken = inspect.signature(scheduler_type).parameters
    for seed in range(part, NUM_CASES, NUM_PARTS):
        engine, options, *served = random_case(random.Random(seed), tmp_path)
        options = {name: value for name, value in options.items() if name in taken}
        sequences, servers = serve(scheduler_type, engine, options, *served)
        slowly = serve(one_by_one(scheduler_type), engine, options, *served)
        assert facts(sequences, servers) == facts(*slowly), f"case {seed}"
        runs = [entry for server in servers for entry in server.log.entries if isinstance(entry, StepRun)]
        num_taken += sum(len(run) for run in runs)
        num_steps += sum(len(server.steps) for server in servers)
    assert num_taken > 0.1 * num_steps


class Holding:
    """A router that may name none, and says so."""

    holds = True

    def __init__(self, route):
        self.route = route

    def __call__(self, sequence):
        return self.route(sequence)


def watched(make_router, seen):
    """What a router sees of all servers as each sequence arrives is appended to `seen`."""

    def make(servers):
        route = make_router(servers)

        def routes(sequence):
            states = [server.state for server in servers]
            loads = [(state.num_unfinished, state.num_tokens, state.num_free_seats) for state in states]
            seen.append((sequence.request.request_id, loads))
            return route(sequence)

        return Holding(routes) if isinstance(route, HoldingRouter) else routes

    return make


def on_a_grid(requests, rng):
    """They arrive as steps begin and end, and halfway."""
    times = sorted(rng.randint(0, 200) * 0.005 for _ in requests)
    return [replace(request, arrival_time=time) for request, time in zip(requests, times, strict=True)]


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.nightly) for part in range(1, NUM_PARTS))])
def test_servers_that_are_behind_are_seen_and_serve_as_if_they_were_not(part, tmp_path):
    """Requests follow none, so what other servers do cuts no server's steps."""
    num_behind = num_taken = num_steps = 0
    for seed in range(part, NUM_CASES, NUM_PARTS):
        rng = random.Random(seed)
        engine, options, requests, *_ = random_case(rng, tmp_path)
        requests = [replace(request, think_time=None, turn=1, session_id=None) for request in requests]
        num_servers, router = rng.randint(2, 5), rng.choice([least_tokens, round_robin, shared_queue])
        results = []
        for scheduler_type in (ContinuousScheduler, one_by_one(ContinuousScheduler)):
            seen = []
            served = serve(scheduler_type, engine, options, requests, num_servers, watched(router, seen), 0.0)
            results.append([*facts(*served), seen])
            if scheduler_type is ContinuousScheduler:
                servers = served[1]
        assert results[0] == results[1], f"case {seed}"
        runs = [entry for server in servers for entry in server.log.entries if isinstance(entry, StepRun)]
        num_taken += sum(len(run) for run in runs)
        num_steps += sum(len(server.steps) for server in servers)
        num_behind += sum(entry.start_time < run.start_times[-1] for run in runs for entry in starts(servers, run))
    assert num_taken > 0.1 * num_steps
    assert num_behind > NUM_CASES / NUM_PARTS


def starts(servers, run):
    """Steps of other servers that begin while the run goes on."""
    others = [server for server in servers if server.index != run.first.server]
    return [step for server in others for step in server.steps if run.start_times[0] < step.start_time]


@pytest.mark.parametrize("step_time", [0.005, 0.01, 0.02])
@pytest.mark.parametrize("num_steps_ahead", [0, 1])
def test_arrivals_as_a_step_ends_are_seen_in_the_order_in_which_both_were_certain(step_time, num_steps_ahead, tmp_path):
    """Steps take equally long and begin with each other: what happens at a time happens in its order all the same."""
    kinds = {kind: kind_cost(kind, step_time) for kind in ("decode", "prompt")}
    path = str(write_model(tmp_path, kinds=kinds, num_steps_ahead=num_steps_ahead))
    make_engine = partial(ModelledEngine, target(), path=path, num_blocks=1000, block_size=4, noise=False)
    for seed in range(10):
        rng = random.Random(seed)
        requests = [Request(index, 0.0, 4, rng.randint(1, 40)) for index in range(20)]
        requests, results = on_a_grid(requests, rng), []
        make_router, options = rng.choice([least_tokens, shared_queue]), {"max_num_seqs": rng.choice([2, 8])}
        for scheduler_type in (ContinuousScheduler, one_by_one(ContinuousScheduler)):
            seen = []
            served = serve(scheduler_type, make_engine, options, requests, 3, watched(make_router, seen), 0.0)
            results.append([*facts(*served), seen])
        assert results[0] == results[1], f"case {seed}"


def test_only_a_class_that_says_it_itself_knows_beforehand(tmp_path):
    engine = ModelledEngine(target(), path=str(write_model(tmp_path)))
    assert knows_beforehand(ContinuousScheduler(100, 4), engine)
    assert not knows_beforehand(one_by_one(ContinuousScheduler)(100, 4), engine)
    assert not knows_beforehand(ContinuousScheduler(100, 4), FakeEngine())


def test_steps_up_to_an_arrival_are_taken_at_once(tmp_path):
    """The second request comes during the eighth decode step: seven of them end before."""
    engine = ModelledEngine(target(), path=str(write_model(tmp_path)), noise=False)
    seen: list[Step | StepRun] = []
    server = Server(ContinuousScheduler(100, 4), engine, on_step=seen.append)
    requests = [Request(0, 0.0, 4, 20), Request(1, 0.095, 4, 2)]
    replay(TraceSource(requests), [server], lambda sequence: server)
    lengths = [len(entry) if isinstance(entry, StepRun) else entry.phase for entry in server.log.entries]
    assert seen == server.log.entries
    assert lengths == ["prefill", 7, "decode", "prefill", "decode", 9, "decode"]
    assert sum(one.num_output_tokens for one in seen) == 22
