"""Adapters in KV blocks: the tokens of adapters with memory of their own, whatever comes, goes, and is evicted."""

from functools import partial

import numpy as np
import pytest
import torch

from framework.core import Request
from framework.engine.torch_engine import TorchEngine, kv_cache
from framework.engine.torch_engine.adapter_memory import round_up
from framework.engine.torch_engine.kv_cache import bytes_per_block
from framework.kernels.lora import lora_delta, plain_lora_delta, rows_per_tile, segments
from framework.lora.gathered import Gathered
from framework.lora.loop import Loop
from framework.lora.pool import pool_of
from framework.lora.segmented import Segmented
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from framework.study.engine_cache import has_full_cache
from tests.lora.serving_models import CONTINUOUS, make_engine, outputs

TABLES = {"llama": ["lm_head", "embed_tokens", "q_proj"], "gpt2": ["lm_head", "wte", "c_attn"]}
NAMES = ["a", None, "b", "c", "a", "d", "b", "e"]
REQUESTS = [
    Request(index, 0.001 * index, 3 + 5 * index % 11, 4 + 3 * index % 7, adapter_id=name)
    for index, name in enumerate(NAMES * 2)
]
SCHEDULERS = {
    "continuous": CONTINUOUS,
    "prefix cache": partial(ContinuousScheduler, max_num_seqs=4, prefix_cache="lru"),
    "mixed": partial(ContinuousScheduler, max_num_seqs=4, max_num_batched_tokens=5, steps="mixed", whole_prompts=False),
    "swap": partial(ContinuousScheduler, max_num_seqs=4, watermark=0.0, preemption="swap"),
    "static": partial(StaticScheduler, max_num_seqs=3),
}


def make_unified(family="llama", strategy=Loop, num_adapters=2.4, num_slots=5, **options):
    """An engine whose cache holds so many adapters."""
    num_blocks = make_engine(family, strategy, memory="unified", num_blocks=3000, **options).blocks_per_adapter
    return make_engine(
        family,
        strategy,
        memory="unified",
        num_slots=num_slots,
        num_blocks=int(num_adapters * num_blocks),
        **options,
    )


@pytest.mark.parametrize("strategy", [Loop, Gathered, Segmented])
@pytest.mark.parametrize(
    ("family", "options"), [("llama", {}), ("gpt2", {"kv_dtype": "int8"}), ("llama", {"targets": TABLES["llama"]})]
)
def test_tokens_equal_those_of_slots_of_their_own(family, strategy, options):
    expected, *_ = outputs(make_engine(family, strategy, num_slots=5, num_blocks=200, **options), REQUESTS)
    engine = make_unified(family, strategy, **options)
    tokens, _, steps = outputs(engine, REQUESTS)
    assert tokens == expected
    assert sum(step.num_adapter_loads for step in steps) > len({*NAMES} - {None})  # some come twice
    assert {step.num_adapter_blocks for step in steps} & {2 * engine.blocks_per_adapter}
    assert (pool_of(engine.model).slab[:, 0] == 0).all()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_whatever_the_schedule(name):
    split = make_engine(strategy=Segmented, num_slots=5, num_blocks=100, num_swap_blocks=20)
    expected, *_ = outputs(split, REQUESTS, SCHEDULERS[name])
    for num_adapters in (1.2, 3.2):
        engine = make_unified(strategy=Segmented, num_adapters=num_adapters, num_swap_blocks=20)
        tokens, sequences, _ = outputs(engine, REQUESTS, SCHEDULERS[name])
        assert tokens == expected
        if name == "swap" and num_adapters < 2:
            assert sum(sequence.num_swaps for sequence in sequences) > 0


def test_sequences_take_the_blocks_of_adapters_that_nobody_uses():
    engine = make_unified(num_adapters=2)
    requests = [Request(index, 1.0, 30, 30) for index in range(1, 5)]  # of 60 blocks
    requests = [Request(0, 0.0, 3, 2, adapter_id="a"), *requests, Request(5, 9.0, 3, 2, adapter_id="a")]
    _, sequences, steps = outputs(engine, requests, partial(ContinuousScheduler, max_num_seqs=4, watermark=0.0))
    assert max(step.num_used_blocks for step in steps) == 60 == engine.num_blocks - 2
    assert [step.num_adapter_loads for step in steps if step.num_adapter_loads] == [1, 1]
    assert sum(sequence.num_preemptions for sequence in sequences) == 0


@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize(("family", "kv_dtype"), [("llama", None), ("gpt2", "int8")])
def test_slots_are_blocks_and_begin_where_vector_loads_may(family, kv_dtype, block_size):
    engine = make_engine(
        family, Segmented, memory="unified", num_slots=3, num_blocks=1001, kv_dtype=kv_dtype, block_size=block_size
    )
    pool, itemsize = pool_of(engine.model), engine.dtype.itemsize
    assert pool.num_slots == engine.num_adapter_slots == 3
    for layer, cache in enumerate(engine._cache):
        for lane, values in enumerate((cache.k, cache.v), start=2 * layer):
            block_bytes = values[:block_size].nbytes
            for slot in range(1, 4):
                first_block = (slot - 1) * engine.blocks_per_adapter
                assert pool.slab[lane, slot].data_ptr() == values.data_ptr() + first_block * block_bytes
            assert pool.slab[lane, 0].nbytes <= engine.blocks_per_adapter * block_bytes
    for projection in pool.layout.projections:
        for factor in (projection.linear.lora.a, projection.linear.lora.b):
            assert factor.data_ptr() % (16 * itemsize) == 0
            assert factor.stride(0) % 16 == factor.stride(1) % 16 == 0


def test_the_whole_budget_is_the_caches_but_for_slot_0():
    for key in ("kv_cache_bytes", "memory_bytes"):
        engine = make_engine(memory="unified", num_blocks=None, **{key: 2**21})
        block_bytes = bytes_per_block(engine.model.config, engine.block_size, engine.dtype)
        assert engine.num_adapter_bytes == engine.blocks_per_adapter * block_bytes
        assert engine.num_cache_bytes == engine.num_blocks * block_bytes
    more = make_engine(memory="unified", num_blocks=None, num_slots=9, memory_bytes=2**21)
    assert more.num_blocks == engine.num_blocks
    assert more.num_adapter_slots == 9
    assert make_engine(num_blocks=None, num_slots=9, memory_bytes=2**21).num_blocks < engine.num_blocks


def test_on_a_gpu_slot_0_is_not_taken_yet(monkeypatch):
    monkeypatch.setattr(kv_cache, "free_bytes_of", lambda device: 2 * kv_cache.CUDA_HEADROOM_BYTES)
    monkeypatch.setattr(kv_cache, "CUDA_CACHE_SHARE", 1e-3)
    split, unified = (make_engine(num_blocks=None, memory=memory) for memory in ("split", "unified"))
    assert split.num_blocks == unified.num_blocks + unified.blocks_per_adapter


def test_a_cache_that_is_limited_to_its_sequences_has_room_for_adapters():
    split = make_engine(num_blocks=None, max_num_blocks=20)
    unified = make_engine(num_blocks=None, max_num_blocks=20, memory="unified", num_slots=3)
    assert (split.num_blocks, unified.num_blocks) == (20, 20 + 3 * unified.blocks_per_adapter)
    make = partial(TorchEngine, max_num_blocks=20)
    assert has_full_cache(make, split)
    assert has_full_cache(make, unified)
    unified.num_blocks -= 1
    assert not has_full_cache(make, unified)


def test_a_second_engine_of_the_model_takes_the_adapters_and_the_first_takes_them_back():
    first = make_unified(strategy=Segmented)
    expected, *_ = outputs(first, REQUESTS)
    second = TorchEngine(first.model, block_size=2, num_blocks=2 * first.num_blocks)
    assert second.blocks_per_adapter == round_up(2 * first.blocks_per_adapter - 1, 2)
    for engine in (second, first, second):
        assert outputs(engine, REQUESTS)[0] == expected


def test_what_cannot_be_says_why():
    with pytest.raises(ValueError, match=r"lora.memory='paged' is not one of split, unified"):
        make_engine(memory="paged")
    with pytest.raises(ValueError, match=r"lora.memory=unified keeps adapters in the KV cache, and .*use_cache=false"):
        make_engine(memory="unified", use_cache=False)
    with pytest.raises(ValueError, match=r"unified: an adapter of rank 8 takes \d+ KV blocks, and the cache has 10: "):
        make_engine(memory="unified", num_blocks=10)
    engine = make_unified(num_adapters=1.1)
    longest = engine.num_blocks * engine.block_size
    with pytest.raises(ValueError, match=rf"longer than the KV cache, .* {engine.blocks_per_adapter} of them for its"):
        outputs(engine, [Request(0, 0.0, 3, longest - 40, adapter_id="a")])


@pytest.mark.skipif(torch.cuda.is_available(), reason="the real path is tested there")
def test_the_kernels_read_slots_between_keys_and_values():
    pytest.importorskip("triton")
    engine = make_engine(strategy=Segmented, memory="unified", num_slots=3, num_blocks=300)
    pool, slots = pool_of(engine.model), np.array([3, 0, 1, 3, 0, 3, 1])
    for cache in engine._cache:
        cache.fill_randomly()
    for slot, name in ((1, "a"), (3, "b")):
        pool.put(slot, pool.load(name))
    tables = torch.from_numpy(segments(slots, rows_per_tile(len(slots)))).int()
    for projection in pool.layout.projections[:4]:  # of a block
        x, lora = torch.randn(len(slots), projection.linear.in_features), projection.linear.lora
        factors = lora.a, lora.b, pool.ranks, tables, lora.sizes
        delta = lora_delta(x, *factors)
        torch.testing.assert_close(delta, plain_lora_delta(x, *factors))
        assert (delta[slots == 0] == 0).all()
        assert (delta[slots != 0] != 0).any(1).all()


def test_bfloat16_adapters_in_an_int8_cache_are_the_numbers_that_were_put():
    engine = make_engine("gpt2", memory="unified", num_blocks=900, kv_dtype="int8", quantize=torch.nn.Module.bfloat16)
    pool = pool_of(engine.model)
    rows = pool.load("a")
    pool.put(2, rows)
    assert rows.dtype == torch.bfloat16
    for projection in pool.layout.projections:
        for own, other in zip(pool.factors(projection), projection.factors(rows), strict=True):
            assert torch.equal(own[2, : len(rows)], other)
            assert (own[2, len(rows) :] == 0).all()
