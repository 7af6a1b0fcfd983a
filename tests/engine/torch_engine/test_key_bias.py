"""Biases of keys beside an int8 KV cache: what is taken off them changes no attention, and what is left is told."""

import cmath
import math
import warnings

import pytest
import torch

from framework.engine.torch_engine import TorchEngine
from framework.engine.torch_engine.key_bias import key_offsets, largest_left
from framework.models.loading import load_model
from framework.quantization import fp8, int8_weight_only, zero_point
from tests.engine.torch_engine.hand_schedules import generate, make_requests
from tests.quantization.small_models import LLAMA, make_model

QWEN2 = LLAMA | {"model_type": "qwen2", "use_sliding_window": False, "rope_theta": 1e6}


def make_qwen2(key_bias, **changes):
    """With `key_bias` (head_dim,) in every layer and key head; the other biases are zero."""
    given = {"path": None, "weights": "random", "config": QWEN2 | changes, "seed": 0, "max_model_len": None}
    model = load_model(**given, dtype="float32", device="cpu")
    for layer in model.layers:
        layer.qkv_proj.weight.mul_(5.0)
        layer.qkv_proj.bias.zero_()
        layer.qkv_proj.bias.split(model.config.qkv_sizes)[1].view(2, 16)[:] = torch.as_tensor(key_bias)
    return model


def on_pair(pair, value):
    bias = torch.zeros(16)
    bias[pair], bias[pair + 8] = value, -value / 2
    return bias


def test_slow_pairs_leave_half_of_what_they_turn():
    """Pair 7 turns by 64 × 1e6 ** (-14 / 16) radians at most, pair 0 by one radian at every position."""
    model = make_qwen2(on_pair(7, 100.0) + on_pair(0, 3.0))
    bias, angle = 100.0 - 50.0j, 63 * 1e6 ** (-14 / 16)
    (first, second) = key_offsets(model)
    assert torch.equal(first, second)
    assert (first[:, [0, 8]] == 0).all()
    offset = complex(first[0, 7], first[0, 15])
    for turned in (bias, bias * cmath.exp(1j * angle)):
        assert abs(offset - turned) == pytest.approx(abs(bias) * math.sin(angle / 2), rel=1e-3)
    assert largest_left(model) == pytest.approx(abs(3.0 - 1.5j), rel=1e-5)


def test_models_without_key_biases_have_no_offset():
    assert key_offsets(make_model("llama")) == [None, None]
    assert key_offsets(make_qwen2(torch.zeros(16))) == [None, None]
    assert largest_left(make_model("llama")) == 0.0


@pytest.mark.parametrize("quantize", [int8_weight_only.quantize, fp8.quantize, zero_point.quantize])
def test_quantized_models_have_the_same_offsets(quantize):
    offsets = key_offsets(make_qwen2(on_pair(7, 100.0)))
    for got, want in zip(key_offsets(quantize(make_qwen2(on_pair(7, 100.0)))), offsets, strict=True):
        torch.testing.assert_close(got, want, atol=1.0, rtol=0)


def tokens(model, chunk, **keywords):
    requests = make_requests([9, 5, 20], [6, 9, 7])
    engine = TorchEngine(model, num_blocks=64, block_size=4, **keywords)
    engine.begin(requests, 4)
    return generate(engine, requests, chunk=chunk)


@pytest.mark.parametrize("chunk", [10**9, 4])
def test_gpt2_attends_as_if_its_keys_had_no_bias(chunk):
    """In int8 the tokens with a bias of 1,000 are those without; one that is not taken off would drown the keys."""
    models = [make_model("gpt2"), make_model("gpt2")]
    for layer in models[1].layers:
        layer.qkv_proj.bias.split(64)[1].copy_(torch.randn(64) * 1000.0)
    assert tokens(models[1], chunk, kv_dtype="int8") == tokens(models[0], chunk, kv_dtype="int8")


def test_biases_that_cost_quality_are_told():
    with pytest.warns(UserWarning, match=r"key biases leave 559\.0 .*engine\.kv_dtype=null"):
        TorchEngine(make_qwen2(on_pair(0, 500.0)), num_blocks=4, kv_dtype="int8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TorchEngine(make_qwen2(on_pair(7, 500.0)), num_blocks=4, kv_dtype="int8")
        TorchEngine(make_qwen2(on_pair(0, 500.0)), num_blocks=4)
