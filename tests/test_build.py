"""From an arm's parts: schedulers with the engine's blocks and slots, engines of just the size, warm-ups."""

from functools import partial

import pytest
import torch

from framework.build import (
    make_engine_for,
    make_scheduler,
    replay_trace,
    resolve_device,
    seat_adapters,
    warm_up_requests,
)
from framework.core import Request, Sequence
from framework.engine.torch_engine import TorchEngine
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from tests.fake_engine import FakeEngine, requests_at
from tests.quantization.small_models import make_model as make_small_model


def test_a_scheduler_has_the_engines_blocks_and_slots():
    engine = FakeEngine(num_blocks=7, block_size=3)
    without = make_scheduler(partial(ContinuousScheduler, max_num_seqs=2), engine)
    assert (without.blocks.num_blocks, without.blocks.block_size, without.adapters.num_slots) == (7, 3, 0)
    engine.num_adapter_slots = 4
    assert make_scheduler(ContinuousScheduler, engine).adapters.num_slots == 4


def test_a_scheduler_that_takes_the_context_is_told_it():
    engine = FakeEngine()
    engine.max_model_len = 77
    make = partial(ContinuousScheduler, max_num_batched_tokens=None)
    assert make_scheduler(make, engine).max_num_batched_tokens == 77
    assert make_scheduler(StaticScheduler, engine).max_num_batched_tokens is None


def sequences(*adapter_ids):
    return [Sequence(Request(index, 0.0, 1, 1, adapter_id=name)) for index, name in enumerate(adapter_ids)]


def test_every_sequence_has_its_adapters_slot():
    engine = FakeEngine()
    engine.num_adapter_slots = 2
    seated = sequences("a", None, "b", "a")
    loads = seat_adapters(engine, seated)
    assert [sequence.adapter_slot for sequence in seated] == [1, 0, 2, 1]
    assert loads == {1: "a", 2: "b"}
    with pytest.raises(ValueError, match=r"more adapters than lora.num_slots=2"):
        seat_adapters(engine, sequences("a", "b", "c"))


def test_an_engine_for_some_requests_holds_them_padded_and_no_more():
    make = partial(TorchEngine, block_size=4, kv_cache_bytes=10**9)
    engine = make_engine_for(requests_at((0.0, 5, 2), (0.0, 2, 6)), make, make_small_model("llama"))
    assert engine.num_blocks == 2 * 3  # two seats of 5 + 6 slots
    with pytest.raises(ValueError, match=r"engine.block_size=0 is not a whole number of at least 1"):
        make_engine_for(requests_at((0.0, 5, 2)), partial(make, block_size=0), make_small_model("llama"))


def test_the_warm_up_has_every_batch_size():
    requests = requests_at(*[(0.5 * index, 4, 3) for index in range(9)])
    warm_up = warm_up_requests(requests, max_num_seqs=5)
    assert [(one.arrival_time, one.num_output_tokens) for one in warm_up] == [(0.0, num) for num in (1, 2, 3, 3, 3)]


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        resolve_device("cuda")
    with pytest.raises(ValueError, match="device=tpu is not one of auto, cpu, cuda"):
        resolve_device("tpu")


def test_a_trace_is_replayed_on_one_server():
    engine = FakeEngine()
    seen = []
    requests = requests_at((0.0, 4, 2), (5.0, 4, 1))
    served, steps = replay_trace(requests, ContinuousScheduler(1000, 4), engine, on_step=seen.append)
    assert [sequence.request for sequence in served] == requests
    assert [(step.start_time, step.phase) for step in steps] == [(0.0, "prefill"), (0.1, "decode"), (5.0, "prefill")]
    assert seen == steps
