"""engine.memory_bytes: weights and KV cache in one budget, so that smaller weights leave more blocks."""

from functools import partial

import pytest

from framework.build import make_engine_for
from framework.engine.torch_engine import TorchEngine
from framework.models.footprint import cache_footprint, footprint
from framework.quantization import int8_weight_only, none, zero_point
from tests.engine.torch_engine.hand_schedules import make_requests
from tests.quantization.small_models import make_model

BLOCK_BYTES = 2 * 2 * 2 * 16 * 4 * 4  # keys and values, layers, KV heads, head_dim, block_size, float32
MEMORY_BYTES = 500_000


@pytest.mark.parametrize("quantize", [none.quantize, int8_weight_only.quantize, zero_point.quantize])
def test_what_the_weights_leave_becomes_blocks(quantize):
    model = quantize(make_model("llama"))
    engine = TorchEngine(model, block_size=4, memory_bytes=MEMORY_BYTES)
    assert engine.num_blocks == (MEMORY_BYTES - footprint(model)["total"]) // BLOCK_BYTES
    assert cache_footprint(model) == engine.num_blocks * BLOCK_BYTES
    assert MEMORY_BYTES - BLOCK_BYTES < footprint(model)["total"] + cache_footprint(model) <= MEMORY_BYTES


def test_an_int8_cache_is_counted_with_its_scales():
    model = int8_weight_only.quantize(make_model("llama"))
    engine = TorchEngine(model, block_size=4, memory_bytes=MEMORY_BYTES, kv_dtype="int8")
    block_bytes = 2 * 2 * 2 * (16 + 2) * 4  # a byte per channel and a float16 scale per head
    assert engine.num_blocks == (MEMORY_BYTES - footprint(model)["total"]) // block_bytes
    assert cache_footprint(model) == engine.num_blocks * block_bytes


def test_int8_weights_free_exactly_their_bytes_for_blocks():
    engines = [
        TorchEngine(quantize(make_model("llama")), block_size=4, memory_bytes=MEMORY_BYTES)
        for quantize in (none.quantize, int8_weight_only.quantize)
    ]
    # Two layers of qkv (128 × 64), o (64 × 64), gate and up (224 × 64), down (64 × 112); a float32 scale per output
    num_weights, num_outputs = 2 * (128 * 64 + 64 * 64 + 224 * 64 + 64 * 112), 2 * (128 + 64 + 224 + 64)
    others = 4 * (97 * 64 + 5 * 64 + 64 * 2 * 16)  # embedding, norms, rope
    left = MEMORY_BYTES - others
    assert engines[0].num_blocks == (left - 4 * num_weights) // BLOCK_BYTES == 95
    assert engines[1].num_blocks == (left - num_weights - 4 * num_outputs) // BLOCK_BYTES == 192


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"memory_bytes": 10_000}, r"the weights take [\d,]+ bytes; engine.memory_bytes is 10,000 for"),
        ({"memory_bytes": MEMORY_BYTES, "num_blocks": 5}, r"leave num_blocks \(5\) and kv_cache_bytes \(None\) null"),
        ({"memory_bytes": MEMORY_BYTES, "kv_cache_bytes": 9}, r"num_blocks \(None\) and kv_cache_bytes \(9\) null"),
        ({"kv_cache_bytes": 9}, r"holds no block of 0\.0 MiB \(4 tokens\); raise engine.kv_cache_bytes"),
        ({"kv_cache_bytes": -1}, r"engine.kv_cache_bytes -1 must be at least 1"),
        ({"kv_cache_bytes": 10**17}, r"^a KV cache of \d+\.\d GiB \(\d+ tokens\) cannot be allocated on cpu; lower"),
    ],
)
def test_a_budget_that_cannot_be_says_so(keywords, message):
    with pytest.raises(ValueError, match=message):
        TorchEngine(make_model("llama"), block_size=4, **keywords)


def test_a_budget_that_the_weights_all_but_fill_holds_no_block():
    model = make_model("llama")
    with pytest.raises(ValueError, match=r"a KV cache of 0\.0 MiB holds no block"):
        TorchEngine(model, block_size=4, memory_bytes=footprint(model)["total"] + BLOCK_BYTES - 1)


def test_an_engine_for_some_requests_takes_no_more_than_they_need():
    engine = partial(TorchEngine, block_size=4, memory_bytes=MEMORY_BYTES)
    made = make_engine_for(make_requests([5, 2], [4, 6]), engine, make_model("llama"))
    assert made.num_blocks == 2 * 3  # of 4 tokens: up to 5 of a prompt and 6 of an output each
    assert cache_footprint(made.model) == made.num_blocks * BLOCK_BYTES
