"""Adapters come and go under random workloads: tokens as if all were always there, and none goes while it is used."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.core import Request
from framework.engine.torch_engine import TorchEngine
from framework.engine.torch_engine.kv_cache import bytes_per_block
from framework.lora.adapters import RandomAdapters
from framework.lora.gathered import Gathered
from framework.lora.loop import Loop
from framework.lora.merged import merge_adapter
from framework.lora.pool import serve_adapters
from framework.lora.segmented import Segmented
from framework.measure.replay_tables import request_table, step_table
from framework.models.footprint import footprint
from framework.quantization import fp8, int8_dynamic, int8_weight_only, zero_point
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from tests.lora.serving_models import LargeAdapters, make_engine, outputs
from tests.quantization.small_models import CONFIGS, make_model
from tests.scheduler.shipped import shipped
from tests.thinning import mostly_nightly

NAMES = [None, "a", "b", "c", "d", "e"]
QUANTIZED = {
    "int8": int8_weight_only.quantize,
    "int8_groups": partial(int8_weight_only.quantize, group_size=32, embeddings=True, head=True),
    "int8_dynamic": int8_dynamic.quantize,
    "fp8": fp8.quantize,
    "zero_point": zero_point.quantize,
}
SCHEDULERS = {
    "static": partial(StaticScheduler, max_num_seqs=3, max_wait=0.0),
    "continuous": partial(ContinuousScheduler, max_num_seqs=4),
    "one adapter": partial(ContinuousScheduler, max_num_seqs=4, max_loras=1),
    "no prefetch": partial(ContinuousScheduler, max_num_seqs=4, prefetch=False),
    "preemptions": partial(ContinuousScheduler, max_num_seqs=6, watermark=0.0),
    "mixed": shipped("mixed", max_num_seqs=4, max_num_batched_tokens=6),
    "mixed with preemptions": shipped("mixed", max_num_seqs=6, max_num_batched_tokens=9, watermark=0.0),
    "hybrid_only": shipped("hybrid_only", max_num_seqs=4, max_num_batched_tokens=13),
    "chunk_only": shipped("chunk_only", max_num_seqs=4, max_num_batched_tokens=6),
}


def make_requests(names, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (len(names), 2), generator=generator).tolist()
    return [Request(index, 0.001 * index, *lengths[index], adapter_id=name) for index, name in enumerate(names)]


ALONE = {}


def alone(family):
    """16 requests, and the output of each from a model with its adapter merged: no batches, slots or loads."""
    if family not in ALONE:
        requests, expected = make_requests((NAMES * 3)[:16]), []
        for request in requests:
            model = make_model(family)
            if request.adapter_id is not None:
                merge(model, request.adapter_id)
            engine = TorchEngine(model, block_size=4, num_blocks=40)
            expected += outputs(engine, [replace(request, arrival_time=0.0)])[0]
        ALONE[family] = requests, expected
    return ALONE[family]


def merge(model, adapter_id):
    merge_adapter(model, adapters=lambda: LargeAdapters(ranks=[2, 8]), adapter_id=adapter_id)


@pytest.mark.parametrize("strategy", [Loop, Gathered, Segmented])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_strategy_serves_what_merged_models_do(family, strategy):
    requests, expected = alone(family)
    assert outputs(make_engine(family, strategy), requests)[0] == expected
    base, *_ = outputs(TorchEngine(make_model(family), block_size=4, num_blocks=40), requests)
    changed = [one != other for one, other in zip(base, expected, strict=True)]
    assert sum(changed) > 5
    assert not any(was for was, request in zip(changed, requests, strict=True) if request.adapter_id is None)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_tokens_do_not_depend_on_the_schedule(scheduler):
    requests, expected = alone("llama")
    tokens, sequences, _ = outputs(make_engine(strategy=Segmented), requests, SCHEDULERS[scheduler])
    assert tokens == expected
    assert all(sequence.adapter_slot == 0 for sequence in sequences)


@pytest.mark.parametrize("strategy", [Loop, Gathered])
def test_tokens_of_mixed_steps_are_those_of_every_strategy(strategy):
    requests, expected = alone("llama")
    tokens, _, steps = outputs(make_engine(strategy=strategy), requests, SCHEDULERS["mixed"])
    assert tokens == expected
    assert any(step.num_prefill_tokens and step.num_decode_tokens for step in steps)


@pytest.mark.parametrize(
    ("quantization", "family", "kv_dtype"), mostly_nightly([*QUANTIZED], [*CONFIGS], [None, "int8"])
)
@pytest.mark.slow
def test_on_quantized_weights_as_the_loop(quantization, family, kv_dtype):
    requests, unquantized = alone(family)
    loop, *others = (
        outputs(make_engine(family, strategy, quantize=QUANTIZED[quantization], kv_dtype=kv_dtype), requests)[0]
        for strategy in (Loop, Gathered, Segmented)
    )
    assert others == [loop, loop]
    same = sum(one == other for pair in zip(loop, unquantized, strict=True) for one, other in zip(*pair, strict=True))
    assert same > 0.3 * sum(map(len, loop))  # the adapters are still there


@settings(max_examples=8, deadline=None)
@given(
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=14),
    num_slots=st.integers(1, 4),
    max_num_seqs=st.integers(1, 5),
    prefetch=st.booleans(),
)
def test_adapters_that_come_and_go_change_no_token(names, num_slots, max_num_seqs, prefetch):
    requests = make_requests(names)
    scheduler = partial(ContinuousScheduler, max_num_seqs=max_num_seqs, prefetch=prefetch)
    tokens, sequences, steps = outputs(make_engine(num_slots=num_slots), requests, scheduler)
    resident, _, resident_steps = outputs(make_engine(num_slots=len(NAMES)), requests, scheduler)
    assert tokens == resident
    used = {name for name in names if name is not None}
    assert sum(step.num_adapter_loads for step in resident_steps) == len(used)
    assert sum(step.num_adapter_loads for step in steps) >= len(used)
    assert (sum(step.adapter_wait for step in steps) > 0) == bool(used)
    waits = request_table(sequences)["adapter_load_wait"]
    assert all(name is not None for name, wait in zip(names, waits, strict=True) if wait > 0)
    assert step_table(steps)["adapter_wait"].le(step_table(steps)["elapsed"]).all()


@pytest.mark.parametrize("budget", ["kv_cache_bytes", "memory_bytes"])
def test_adapters_and_keys_and_values_share_one_budget(budget):
    sizes, adapters = {}, partial(RandomAdapters, ranks=[4])
    for num_slots in (1, 5):
        model = serve_adapters(make_model("llama"), strategy=Loop, adapters=adapters, num_slots=num_slots, max_rank=4)
        engine = TorchEngine(model, block_size=4, **{budget: 2**20})
        block_bytes = bytes_per_block(model.config, 4, engine.dtype)
        sizes[num_slots] = engine.num_blocks * block_bytes
        taken = engine.num_adapter_bytes + (footprint(model)["total"] if budget == "memory_bytes" else 0)
        assert 2**20 - block_bytes < sizes[num_slots] + taken <= 2**20
    assert sizes[5] < sizes[1]
    with pytest.raises(ValueError, match=r"holds no block .*adapter slots take 0.\d MiB"):
        TorchEngine(model, block_size=4, kv_cache_bytes=2**16)


def test_every_replay_reads_an_adapter_from_its_source_once(monkeypatch):
    engine, read = make_engine(num_slots=1), []
    load = engine.adapters.pool.load
    monkeypatch.setattr(engine.adapters.pool, "load", lambda adapter_id: read.append(adapter_id) or load(adapter_id))
    for _ in range(2):
        read.clear()
        _, _, steps = outputs(engine, make_requests(["a", "b"] * 4))
        assert sorted(read) == ["a", "b"]
        assert sum(step.num_adapter_loads for step in steps) > 2


def test_an_adapter_that_cannot_be_served_fails_before_the_replay():
    engine = make_engine()
    engine.adapters.pool.max_rank = 4
    with pytest.raises(ValueError, match=r"adapter '\w' has rank 8, more than lora.max_rank=4"):
        engine.begin(make_requests(NAMES), 4)
    refused = engine.refused_adapters(make_requests(NAMES))
    assert refused
    assert all(f"adapter {name!r} has rank 8" in reason for name, reason in refused.items())
    assert refused.keys() < {name for name in NAMES if name}
    assert TorchEngine(make_model("llama"), num_blocks=20).refused_adapters(make_requests(NAMES)) == {}


def test_an_adapter_is_looked_at_once():
    engine, checked = make_engine(), []
    engine.adapters.pool.check = checked.append
    for _ in range(2):
        engine.begin(make_requests(["a", "b", "a"]), 4)
    assert checked == ["a", "b"]
