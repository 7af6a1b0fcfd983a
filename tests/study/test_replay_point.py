"""A point's way: a bad trace fails before a model loads, what is refused stays offered, and what a replay leaves."""

import io
import math
import random
from dataclasses import replace
from functools import partial

import pytest
import torch
from rich.console import Console

from framework.core import Request, Trace
from framework.engine.torch_engine import TorchEngine
from framework.measure.metrics import summarize
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.orders.fcfs import FirstCome
from framework.scheduler.orders.priority import priority
from framework.scheduler.orders.vtc import TokenCounters
from framework.scheduler.static import StaticScheduler
from framework.study.arms import resolve_arms
from framework.study.engine_cache import EngineCache
from framework.study.load import Load
from framework.study.points import Point
from framework.study.progress import SweepProgress
from framework.study.replay_point import may_share, replay_point
from tests.fake_engine import FakeEngine
from tests.quantization.small_models import make_model
from tests.study.fake_study import DEFAULTS, LOADED
from tests.thinning import mostly_nightly


def three_requests(*, rate, seed) -> Trace:
    """One every second, of 4 + 2 tokens."""
    return Trace([Request(index, float(index), 4, 2) for index in range(3)], {"failed": 5})


def all_at_once(*, rate, seed) -> Trace:
    return Trace([Request(index, 0.0, 4, 2) for index in range(3)])


def bad_trace(*, rate, seed) -> Trace:
    raise ValueError("a bad trace")


def replayed(trace, seed=0, **components):
    arm = replace(resolve_arms({"only": components}, DEFAULTS)["only"], trace=partial(trace))
    console = Console(file=io.StringIO(), width=100)
    engines = EngineCache(torch.device("cpu"), lambda message: None)
    with SweepProgress(console, num_points=1) as progress:
        result = replay_point(Point("only", Load(), seed, "digest"), arm, engines, progress)
    return result, console.file.getvalue()


def equal_beginnings(*, rate, seed) -> Trace:
    """Of 13 tokens the first 8 are equal."""
    names = [{"prefix_ids": (7, index), "prefix_block_size": 8} for index in range(3)]
    return Trace([Request(index, float(index), 13, 2, **named) for index, named in enumerate(names)])


@pytest.mark.parametrize(("prefix_cache", "ignored", "hits"), [(None, ["prefix_ids"], 0.0), ("lru", [], 16 / 39)])
def test_prefixes_are_ignored_without_a_prefix_cache(prefix_cache, ignored, hits):
    scheduler = partial(ContinuousScheduler, prefix_cache=prefix_cache)
    result, _ = replayed(equal_beginnings, scheduler=scheduler)
    assert result.trace["ignored"] == ignored
    assert summarize(result.requests, result.steps, {})["prefix_hits"] == pytest.approx(hits)
    assert result.steps["num_cached_blocks"].tolist() == ([0] * 6 if prefix_cache is None else [0, 0, 1, 1, 2, 2])


def of_two_clients(*, rate, seed) -> Trace:
    return Trace([Request(index, float(index), 13, 2, priority=index, client_id="ab"[index]) for index in range(2)])


@pytest.mark.parametrize(
    ("order", "ignored"),
    [
        (FirstCome, ["priority", "client_id"]),
        (partial(priority, preempts=False, max_wait=None), ["client_id"]),
        (partial(TokenCounters, prompt_weight=1.0, output_weight=2.0), ["priority"]),
    ],
    ids=["fcfs", "priority", "vtc"],
)
def test_clients_and_priorities_are_ignored_where_no_order_asks_for_them(order, ignored):
    result, _ = replayed(of_two_clients, scheduler=partial(ContinuousScheduler, order=order))
    assert result.trace["ignored"] == ignored
    assert result.requests["client_id"].tolist() == ["a", "b"]
    assert result.requests["num_predicted_tokens"].isna().all()


def load_small(*, device):
    return make_model("llama", device=device)


def measured(trace, num_servers, **options):
    """As `replayed`, by a real engine with two KV blocks of 4 tokens for each of two servers."""
    engine = partial(TorchEngine, **{"num_blocks": 4, "block_size": 4} | options)
    return replayed(trace, model=partial(load_small), engine=engine, servers=num_servers)


def test_measured_servers_share_an_engine_and_the_tables_say_whose_a_step_was():
    result, _ = measured(three_requests, 2)
    assert result.requests["server"].tolist() == [0, 1, 0]
    assert result.steps.groupby("server")["num_output_tokens"].sum().to_dict() == {0: 4, 1: 2}
    assert (result.steps["elapsed"] > 0).all()
    assert (result.engine["num_blocks"], result.engine["num_steps_ahead"]) == (2, 0)
    assert result.engine["switches"]["overlap"] is False


def test_what_one_server_could_serve_and_a_share_of_it_cannot_is_refused_before_anything_is_measured():
    result, _ = measured(equal_beginnings, 1)
    assert result.requests["server"].tolist() == [0, 0, 0]
    message = r"servers=2: each has 2 of the engine's 4 KV blocks of 4 tokens, and request 0 is refused: .*"
    with pytest.raises(ValueError, match=message):
        measured(equal_beginnings, 2)
    with pytest.raises(ValueError, match="servers=5 share 4 KV blocks"):
        measured(three_requests, 5)
    with pytest.raises(ValueError, match=r"arms\.only\.servers"):
        measured(three_requests, 0)


def test_the_wall_clock_serves_one_server():
    with pytest.raises(ValueError, match="clock=wall serves one server, not 2"):
        replayed(three_requests, model=partial(load_small), engine=partial(TorchEngine), servers=2, clock="wall")


def test_the_blocks_of_an_adapter_are_in_the_record():
    result, _ = replayed(equal_beginnings)
    assert result.engine["blocks_per_adapter"] == 0
    assert result.steps["num_adapter_blocks"].tolist() == [0] * 6


def test_text_closed_turns_and_common_names_may_be_shared():
    one = Request(0, 0.0, 9, 1, prefix_ids=(1, 2, 2))
    assert not may_share([one, replace(one, request_id=1, prefix_ids=(3,))])
    for other in ({"prefix_ids": (4, 2)}, {"prompt_token_ids": (1,) * 9}, {"think_time": 0.0}):
        assert may_share([one, replace(one, request_id=1, **{"prefix_ids": (), **other})])


def test_a_replay_leaves_tables_and_what_was_replayed_on_what():
    result, output = replayed(three_requests)
    assert result.trace == {
        "num_requests": 3,
        "dropped": {"failed": 5},
        "refused": {},
        "ignored": [],
        "may_share": False,
        "offered_rate": 1.0,
        "num_sessions": 3,
        "session_rate": 1.0,
    }
    assert result.requests["ttft"].tolist() == pytest.approx([0.01] * 3)
    assert result.steps["phase"].tolist() == ["prefill", "decode"] * 3
    assert result.engine["num_blocks"] == 1000
    assert "5 requests dropped: failed" in output


def test_the_rate_of_requests_that_come_at_once_is_infinite():
    assert replayed(all_at_once)[0].trace["offered_rate"] == math.inf


def test_a_bad_trace_fails_before_a_model_loads():
    LOADED.clear()
    with pytest.raises(ValueError, match="a bad trace"):
        replayed(bad_trace)
    assert LOADED == []


def test_an_arm_may_have_several_servers_which_share_the_requests():
    result, _ = replayed(three_requests, servers=2)
    assert result.requests["ttft"].tolist() == pytest.approx([0.01] * 3)
    assert result.steps["server"].tolist() == [0, 0, 1, 1, 0, 0]
    assert result.steps["start_time"].is_monotonic_increasing


def only_the_last(servers):
    return lambda sequence: servers[-1]


def test_an_arm_may_have_another_router():
    result, _ = replayed(three_requests, servers=3, router=partial(only_the_last))
    assert result.steps["server"].tolist() == [2] * 6


@pytest.mark.parametrize("servers", [0, -1, 1.5, True, "two"])
def test_a_number_of_servers_that_is_none_is_refused(servers):
    with pytest.raises(ValueError, match=r"arms\.only\.servers=.* is not a whole number of at least 1"):
        resolve_arms({"only": {"servers": servers}}, DEFAULTS)


class PickyEngine(FakeEngine):
    """Takes 40 tokens a request, in few blocks, and no adapter of an odd number."""

    max_model_len = 40

    def refused_adapters(self, requests):
        names = {request.adapter_id for request in requests if request.adapter_id is not None}
        return {name: f"no {name}" for name in names if int(name) % 2}


def build_picky_engine(*, model, num_blocks):
    return PickyEngine(lambda batch: 0.01 + 0.001 * sum(batch.num_tokens), num_blocks=num_blocks)


def random_trace(*, rate, seed):
    rng = random.Random(seed)
    times = sorted(rng.choice([0.0, rng.uniform(0, 3)]) for _ in range(rng.randint(1, 60)))
    names = [None, "0", "1", "2", "3"]
    return Trace(
        [Request(i, t, rng.randint(1, 30), rng.randint(1, 30), rng.choice(names)) for i, t in enumerate(times)]
    )


@pytest.mark.parametrize(("scheduler", "num_blocks"), mostly_nightly([ContinuousScheduler, StaticScheduler], [6, 100]))
def test_what_is_offered_is_served_refused_or_unfinished(scheduler, num_blocks):
    """Of random traces, on every arm; all arms are offered the same."""
    for seed in range(8):
        trace = random_trace(rate=None, seed=seed)
        parts = {"engine": partial(build_picky_engine, num_blocks=num_blocks), "scheduler": partial(scheduler)}
        fitting = [
            request.num_prompt_tokens + request.num_output_tokens <= min(40, 4 * num_blocks)
            and request.adapter_id not in ("1", "3")
            for request in trace.requests
        ]
        if not any(fitting):
            with pytest.raises(ValueError, match=f"none of {len(fitting)} requests can be served"):
                replayed(random_trace, seed=seed, **parts)
            continue
        result, _ = replayed(random_trace, seed=seed, **parts)
        table = result.requests
        assert table["request_id"].tolist() == [request.request_id for request in trace.requests]
        assert table["arrival_time"].tolist() == [request.arrival_time for request in trace.requests]
        assert table["refused"].isna().tolist() == fitting
        assert sum(result.trace["refused"].values()) == len(fitting) - sum(fitting)
        numbers = summarize(table, result.steps, {"ttft": 1e-3})
        is_unfinished = table["refused"].isna() & table["finish_time"].isna()
        assert numbers["num_requests"] == len(trace.requests) == result.trace["num_requests"]
        assert numbers["num_requests"] == numbers["num_completed"] + numbers["num_refused"] + is_unfinished.sum()
        assert numbers["slo_attainment"] == 0.0
        assert summarize(table, result.steps, {})["slo_attainment"] == pytest.approx(sum(fitting) / len(fitting))
        assert table["ttft"].notna().tolist() == fitting


def sessions(*, rate, seed) -> Trace:
    """Two sessions, of which the second's third turn is longer than 40 tokens."""
    lengths = [("a", 1, 5, 1, None), ("a", 2, 8, 1, 1.0), ("b", 1, 20, 6, None), ("b", 2, 30, 2, 1.0)]
    lengths += [("b", 3, 40, 1, 1.0), ("b", 4, 42, 1, 1.0)]
    requests = [
        Request(index, 0.0 if name == "a" else 2.0, *tokens, session_id=name, turn=turn, think_time=think_time)
        for index, (name, turn, *tokens, think_time) in enumerate(lengths)
    ]
    return Trace(requests, max_concurrency=1)


def test_a_session_ends_before_a_turn_that_is_refused_and_the_rate_is_what_it_turned_out_to_be():
    result, _ = replayed(sessions, engine=partial(build_picky_engine, num_blocks=100))
    assert result.trace["refused"] == {
        "longer than the model's context of 40 tokens": 1,
        "follows a turn of its session that is refused": 1,
    }
    assert result.trace["ignored"] == []
    served = result.requests[result.requests["refused"].isna()]
    assert served["turn"].tolist() == [1, 2, 1, 2]
    assert served["arrival_time"].tolist() == pytest.approx([0.0, 1.015, 2.0, 2.0 + 0.03 + 5 * 0.011 + 1.0])
    assert result.trace["offered_rate"] == pytest.approx(3 / 3.085)
    assert served["think_time"].isna().tolist() == [True, False, True, False]
