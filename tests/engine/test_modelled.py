"""ModelledEngine charges its cost model's seconds, under every scheduler, and serves queues as theory says."""

from functools import partial

import numpy as np
import pytest

from framework.build import make_scheduler, replay_trace
from framework.core import Request
from framework.engine.modelled import ModelledEngine, check_executes, is_modelled
from framework.replay import Server, replay
from framework.router.round_robin import round_robin
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from framework.trace.source import TraceSource
from tests.cost.test_subject import ADAPTERS
from tests.cost_models import kind_cost, target, write_model
from tests.engine.torch_engine.test_engine import make_engine
from tests.fake_engine import FakeEngine, requests_at
from tests.quantization.small_models import LLAMA


def make(folder, seed=0, noise=True, num_swap_blocks=0, num_blocks=None, **changes):
    path = str(write_model(folder, **changes))
    options = {"seed": seed, "noise": noise, "num_swap_blocks": num_swap_blocks, "num_blocks": num_blocks}
    return ModelledEngine(target(), path=path, **options)


def times(engine, requests, make=ContinuousScheduler, **options):
    sequences, steps = replay_trace(requests, make_scheduler(partial(make, **options), engine), engine)
    return [sequence.token_times for sequence in sequences], steps


REQUESTS = requests_at((0.0, 8, 6), (0.01, 20, 3), (0.03, 5, 9), (0.2, 16, 2))


@pytest.mark.parametrize(
    ("make_scheduler", "options"),
    [
        (ContinuousScheduler, {}),
        (ContinuousScheduler, {"prefix_cache": "lru", "reservation": "pow2"}),
        (StaticScheduler, {"max_num_seqs": 2, "max_wait": 0.0}),
        (
            ContinuousScheduler,
            {"steps": "mixed", "max_num_batched_tokens": 9, "max_num_seqs": 4, "whole_prompts": False},
        ),
    ],
    ids=["continuous", "prefix cache", "static", "mixed"],
)
@pytest.mark.parametrize("num_steps_ahead", [0, 1])
def test_a_replay_is_that_of_an_engine_whose_steps_take_the_models_seconds(
    tmp_path, make_scheduler, options, num_steps_ahead
):
    engine = make(tmp_path, num_steps_ahead=num_steps_ahead)
    fake = FakeEngine(lambda batch: 0.02 if batch.num_prefill_tokens else 0.01, num_steps_ahead=num_steps_ahead)
    assert times(engine, REQUESTS, make_scheduler, **options)[0] == times(fake, REQUESTS, make_scheduler, **options)[0]


def test_noise_is_drawn_by_seed_and_has_the_mean_of_its_ratios(tmp_path):
    kinds = {"decode": kind_cost("decode", ratios=(0.5, 1.0, 3.0)), "prompt": kind_cost("prompt", ratios=(1.0, 2.0))}
    requests = [Request(0, 0.0, 8, 2000)]
    engine = make(tmp_path, kinds=kinds)
    once, steps = times(engine, requests)
    assert times(engine, requests)[0] == once
    assert times(make(tmp_path, seed=1, kinds=kinds), requests)[0] != once
    decode = [step.elapsed for step in steps if step.phase == "decode"]
    assert np.mean(decode) == pytest.approx(0.01 * 1.375, rel=0.03)
    assert min(decode) >= 0.005
    assert max(decode) <= 0.03
    _, steps = times(make(tmp_path, noise=False, kinds=kinds), requests)
    assert {round(step.elapsed, 9) for step in steps[1:]} == {0.01375}


def test_the_first_step_of_a_server_that_runs_ahead_has_the_hosts_work_to_itself(tmp_path):
    cost = kind_cost("decode")
    kinds = {"decode": cost, "prompt": kind_cost("prompt", 0.02)}
    kinds["prompt"].beside["is_first"] = 0.3
    for cost in kinds.values():
        cost.host["constant"] = 0.2  # for which the prompt before waits
    _, steps = times(make(tmp_path, kinds=kinds, num_steps_ahead=1), requests_at((0.0, 4, 2), (9.0, 4, 2)))
    assert [round(step.elapsed, 9) for step in steps] == [0.52, 0.01, 0.52, 0.01]
    assert {round(step.prepare, 9) for step in steps} == {0.2}
    assert [round(step.device, 9) for step in steps] == [0.02, 0.01, 0.02, 0.01]


@pytest.mark.parametrize("utilization", [0.7])
def test_waiting_is_that_of_a_queue_with_equal_service(tmp_path, utilization):
    """M/D/1, by Pollaczek and Khinchine: one seat, one token, so that a request is one step."""
    service, rng = 0.02, np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(service / utilization, 12_000)).tolist()
    requests = [Request(index, time, 1, 1) for index, time in enumerate(arrivals)]
    ends, _ = times(make(tmp_path), requests, max_num_seqs=1)
    waits = [end[0] - arrival - service for end, arrival in zip(ends, arrivals, strict=True)]
    assert np.mean(waits) == pytest.approx(utilization * service / (2 * (1 - utilization)), rel=0.08)


def test_no_output_ends_before_its_length_whatever_stops_it(tmp_path):
    requests = [
        Request(0, 0.0, 4, 5, stop_token_ids=frozenset({0, 1})),
        Request(1, 0.0, 4, 7, stop_token_ids=frozenset({3})),
    ]
    ends, _ = times(make(tmp_path), requests)
    assert [len(end) for end in ends] == [5, 7]


def test_swapped_blocks_are_copied_and_counted_as_outside(tmp_path):
    engine = make(tmp_path, num_swap_blocks=64, num_blocks=6, kinds={
        "decode": kind_cost("decode", most=80.0), "prompt": kind_cost("prompt", most=80.0)
    })  # fmt: skip
    for cost in engine.cost.kinds.values():
        cost.beside["num_copied_blocks"] = 1.0
        cost.ranges["num_copied_blocks"] = (0.0, 0.0)
    _, steps = times(engine, requests_at((0.0, 8, 9), (0.0, 8, 9)), preemption="swap", watermark=0.0)
    copied = [step for step in steps if step.num_swapped_out_blocks + step.num_swapped_in_blocks]
    assert copied
    assert all(
        step.elapsed > step.swap_wait == step.num_swapped_out_blocks + step.num_swapped_in_blocks for step in copied
    )
    assert engine.outside.num_outside == len(copied)
    assert all(name.startswith("num_copied_blocks") for name in engine.outside.furthest)


def test_the_cache_is_the_measured_engines_unless_it_is_given(tmp_path):
    path = str(write_model(tmp_path, num_blocks=100))
    measured, larger, own = (
        ModelledEngine(target(), path=path, **options) for options in ({}, {"block_size": 16}, {"num_blocks": 7})
    )
    assert (measured.num_blocks, measured.block_size, measured.num_cache_bytes) == (100, 4, 100_000)
    assert (larger.num_blocks, larger.block_size, larger.num_cache_bytes) == (25, 16, 100_000)
    assert (own.num_blocks, own.num_cache_bytes) == (7, 7000)
    with pytest.raises(ValueError, match=r"engine.num_blocks=0"):
        ModelledEngine(target(), path=path, num_blocks=0)
    with pytest.raises(ValueError, match=r"engine.path=null"):
        ModelledEngine(target())


def test_adapters_have_slots_and_loads_and_different_ones_have_their_price(tmp_path):
    served = target(lora=ADAPTERS)
    kinds = {"decode": kind_cost("decode", num_adapters=1.0), "prompt": kind_cost("prompt")}
    kinds["prompt"].beside["num_adapter_loads"] = 10.0
    engine = ModelledEngine(served, path=str(write_model(tmp_path, subject=served.subject, kinds=kinds)))
    assert (engine.num_adapter_slots, engine.num_adapter_bytes) == (4, 500)
    requests = [Request(index, 0.0, 4, 2, adapter_id=name) for index, name in enumerate(["a", "b", "a", None])]
    sequences, steps = replay_trace(requests, make_scheduler(partial(ContinuousScheduler), engine), engine)
    assert [round(step.elapsed, 9) for step in steps] == [20.01, 2.01]
    assert [step.adapter_wait for step in steps] == [20.0, 0.0]
    assert [sequence.adapter_load_wait for sequence in sequences] == [20.0, 20.0, 20.0, 0.0]
    assert engine.refused_adapters(requests) == {}


def test_several_servers_share_a_trace(tmp_path):
    servers = [Server(ContinuousScheduler(1000, 4), make(tmp_path), index) for index in range(2)]
    sequences = replay(TraceSource(REQUESTS), servers, round_robin(servers))
    assert all(sequence.is_finished for sequence in sequences)
    assert all(server.steps for server in servers)


def test_what_is_modelled_is_known_from_its_config():
    assert is_modelled(partial(ModelledEngine))
    check_executes(partial(FakeEngine))
    with pytest.raises(ValueError, match=r"computes no steps that could be timed: use engine=torch"):
        check_executes(partial(ModelledEngine))
    assert not is_modelled(partial(FakeEngine))


def sessions(with_text):
    """Four conversations of three turns; the first two begin with the same prompt, all share their first 8 tokens."""
    requests = []
    for index in range(4):
        prompt = (1, *range(2, 9), *([9] * 4 if index < 2 else [10 + index] * 4))
        for turn, (num_prompt, num_output) in enumerate([(12, 6), (23, 9), (37, 5)], start=1):
            think_time = None if turn == 1 else 1.0
            text = prompt + (7,) * (num_prompt - 12) if with_text else None
            names = (1, 5 + max(index - 1, 0)) if turn == 1 else ()  # of 8 tokens each: of the second one half is there
            shared = {"prompt_token_ids": text} if with_text else {"prefix_ids": names, "prefix_block_size": 8}
            session = {"session_id": str(index), "turn": turn, "think_time": think_time}
            requests.append(Request(len(requests), 10.0 * index, num_prompt, num_output, **session, **shared))
    return requests


@pytest.mark.parametrize("with_text", [False, True], ids=["names", "text"])
def test_a_prefix_cache_finds_in_conversations_what_it_finds_in_executed_ones(tmp_path, with_text):
    """Greedy sampling answers equal prompts alike, and so does a model: the second conversation's answer is known."""
    executed = make_engine(config=LLAMA, block_size=4, num_blocks=200)
    modelled = make(tmp_path)
    for engine in (executed, modelled):
        scheduler = ContinuousScheduler(200, 4, max_num_seqs=2, prefix_cache="lru")
        sequences, steps = replay_trace(sessions(with_text), scheduler, engine)
        found = [(one.request.request_id, one.num_cached_tokens) for one in sequences]
        shapes = [(step.phase, step.num_seqs, step.num_prefill_tokens) for step in steps]
        if engine is executed:
            expected = found, shapes
    assert (found, shapes) == expected
    assert sum(num for _, num in found) > 100
