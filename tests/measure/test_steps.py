"""The measuring code with a fake engine: which steps count, and what is skipped."""

from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from framework.core import StepResult
from framework.engine.torch_engine import TorchEngine
from framework.measure.ceilings import Ceilings
from framework.measure.steps import (
    NUM_WARM_UP_STEPS,
    get_ready,
    make_sequences,
    measure_cases,
    measure_decode,
    time_steps,
    why_not,
)
from tests.engine.torch_engine.hand_schedules import make_requests
from tests.engine.torch_engine.test_engine import GPT2_CONFIG, make_engine

CEILINGS = Ceilings(read_bandwidth=100.0, copy_bandwidth=100.0, matmul_rate=1000.0)


class FakeEngine:
    """Step i takes i seconds on the device and, from collect to collect, i + 0.5 by the host's clock."""

    def __init__(self, num_steps_ahead):
        self.num_steps_ahead, self.num_in_flight, self.most_in_flight, self.now, self.num_collected = (
            num_steps_ahead, 0, 0, 0.0, 0,
        )  # fmt: skip

    def launch(self, batch):
        self.num_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.num_in_flight)

    def collect(self):
        self.num_in_flight -= 1
        self.now += self.num_collected + 0.5
        self.num_collected += 1
        return StepResult([], 0.0, device=float(self.num_collected - 1))

    def timer(self):
        return self.now


@pytest.mark.parametrize("num_steps_ahead", [0, 1])
def test_the_warm_up_is_not_timed_and_steps_are_launched_ahead(num_steps_ahead):
    engine = FakeEngine(num_steps_ahead)
    device, elapsed = time_steps(engine, [None] * (NUM_WARM_UP_STEPS + 3))
    assert (device, elapsed) == (6.0, 6.5)  # of steps 5, 6 and 7
    assert engine.num_in_flight == 0
    assert engine.most_in_flight == 1 + num_steps_ahead


def test_sequences_share_no_block_and_are_scattered():
    engine = SimpleNamespace(num_blocks=64, block_size=4, blocks_per_adapter=3, add=lambda sequence: None)
    tables = [one.block_table for one in make_sequences(engine, make_requests([5, 8, 9], [3, 0, 3]))]
    blocks = [block for table in tables for block in table]
    assert [len(table) for table in tables] == [2, 2, 3]
    assert len(set(blocks)) == 7
    assert blocks != sorted(blocks)
    requests = make_requests([70, 72, 70], [0] * 3)
    named = [replace(request, adapter_id=name) for request, name in zip(requests, "aba", strict=True)]
    blocks = [*chain.from_iterable(one.block_table for one in make_sequences(engine, named))]
    assert len(blocks) == 54
    assert min(blocks) >= 6  # the others are the two adapters'


def test_what_does_not_fit_says_why():
    engine = SimpleNamespace(
        device=torch.device("cpu"), max_model_len=100, num_blocks=10, block_size=8, blocks_per_adapter=3
    )
    assert why_not("decode", engine, 2, 40) == ""
    assert "101 tokens are more than the model's context of 100" in why_not("prefill", engine, 1, 101)
    assert "14 KV blocks of 8 tokens are more than the cache's 10" in why_not("decode", engine, 2, 50)
    assert "needs a GPU" in why_not("attention", engine, 1, 1)
    assert "16 KV blocks" in why_not("decode", engine, 2, 40, num_adapters=2)


@pytest.fixture(params=[None, "int8"])
def engine(request) -> TorchEngine:
    engine = make_engine(config=GPT2_CONFIG | {"n_embd": 32, "n_head": 2, "n_layer": 2}, kv_dtype=request.param)
    get_ready(engine, 4)
    return engine


def test_decode_and_prefill_of_a_real_engine(engine):
    said = []
    sizes = {"decode": [[1, 24], [3, 24], [999, 24]], "prefill": [[2, 8]], "attention": [[1, 8]]}
    cases = measure_cases(sizes, engine, 4, CEILINGS, said.append)
    assert [(case.kind, case.num_seqs, case.num_tokens) for case in cases] == [
        ("decode", 1, 24), ("decode", 3, 24), ("prefill", 2, 8),
    ]  # fmt: skip
    assert all(0 < case.device < case.elapsed for case in cases)
    assert ["skipped" in line for line in said] == [False, False, True, False, True]


def test_a_context_too_short_for_the_steps(engine):
    least = 20 // 2 + NUM_WARM_UP_STEPS + 2
    with pytest.raises(ValueError, match=f"context=10 is too short for 20 steps up to it: at least {least}"):
        measure_decode(engine, 1, 10, 20)
    assert measure_decode(engine, 1, least, 20).num_tokens == least


def test_without_a_cache_there_is_nothing_to_time():
    with pytest.raises(ValueError, match="use_cache=false"):
        get_ready(make_engine(use_cache=False), 1)
