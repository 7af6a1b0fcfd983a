"""Errors of weights and logits, KL and agreement: by hand, and against the schemes' own dequantization."""

import copy
import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.kernels.int8 import dequantize_int8, quantize_int8
from framework.measure.perplexity import window_losses
from framework.measure.quality import (
    Comparison,
    block_error,
    compare_logits,
    compare_models,
    read_tokens,
    weight_errors,
)
from framework.models.loading import load_model
from framework.paths import ROOT
from framework.quantization import fp8, int8_dynamic, int8_weight_only, none, zero_point
from tests.quantization.small_models import CONFIGS, make_model

TINY = ROOT / "models" / "tiny"


def test_two_tokens_by_hand():
    """Probabilities (1/2, 1/4, 1/4) against (1/4, 1/2, 1/4), then (1/5, 3/5, 1/5) against itself, shifted by 7."""
    expected = torch.tensor([[2.0, 1.0, 1.0], [1.0, 3.0, 1.0]]).log()
    logits = torch.tensor([[1.0, 2.0, 1.0], [1.0, 3.0, 1.0]]).log() + torch.tensor([[0.0], [7.0]])
    sums = compare_logits(logits, expected, torch.tensor([0, 1])).tolist()
    log2, log3 = math.log(2), math.log(3)
    nll, reference_nll, kl, num_agreeing, squared_error, squared_norm, num_tokens = sums
    assert nll == pytest.approx(2 * log2 - math.log(3 / 5), rel=1e-6)
    assert reference_nll == pytest.approx(log2 - math.log(3 / 5), rel=1e-6)
    assert kl == pytest.approx(log2 / 2 - log2 / 4, rel=1e-6)
    assert (num_agreeing, num_tokens) == (1, 2)
    assert squared_error == pytest.approx(2 * log2**2, rel=1e-6)
    assert squared_norm == pytest.approx((log2**2 + log3**2) * 2 / 3, rel=1e-6)


def test_summary_by_hand():
    """Two windows, of 1 and 3 tokens."""
    windows = [[2.0, 4.0], [1.0, 4.0], [0.4, 0.8], [1.0, 2.0], [1.0, 8.0], [400.0, 500.0], [1.0, 3.0]]
    summary = Comparison(*np.array(windows)).summary()
    assert summary["perplexity"] == pytest.approx(math.exp(6 / 4))
    assert summary["reference_perplexity"] == pytest.approx(math.exp(5 / 4))
    assert summary["perplexity_change"] == pytest.approx(math.exp(1 / 4) - 1)
    assert (summary["perplexity_change_low"], summary["perplexity_change_high"]) == pytest.approx((0.0, math.e - 1))
    assert summary["top1_agreement"] == 0.75
    assert summary["top1_agreement_low"] == pytest.approx(2 / 3)
    assert summary["kl"] == pytest.approx(0.3)
    assert summary["logit_error"] == pytest.approx(0.1)


def test_compare_reads_both_as_the_perplexity_does():
    model, reference = zero_point.quantize(make_model("llama")), make_model("llama")
    text = torch.randint(97, (70,), generator=torch.Generator().manual_seed(0))
    options = {"window_len": 16, "stride": 8, "batch_size": 3}
    comparison = compare_models(model, reference, text, **options)
    np.testing.assert_allclose(comparison.nll, window_losses(model, text, **options).nll, rtol=1e-6)
    np.testing.assert_allclose(comparison.reference_nll, window_losses(reference, text, **options).nll, rtol=1e-6)
    assert comparison.num_tokens.sum() == 69
    assert (comparison.kl > 0).all()
    itself = compare_models(reference, reference, text, **options)
    assert (itself.kl == 0).all()
    assert (itself.squared_error == 0).all()
    assert (itself.num_agreeing == itself.num_tokens).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", CONFIGS)
def test_weight_errors_are_those_of_the_stored_numbers(family, dtype):
    reference = make_model(family)
    for name, parameter in reference.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
    torch_dtype = getattr(torch, dtype)
    model = copy.deepcopy(reference).to(torch_dtype)
    errors = weight_errors(int8_weight_only.quantize(model, group_size=32), reference).set_index("module")
    for name, row in errors.iterrows():
        weight = reference.get_submodule(name).weight
        stored = weight.to(torch_dtype)
        if name.startswith("layers."):
            stored = dequantize_int8(*quantize_int8(stored, 32), 32, torch_dtype)
        expected = ((stored.float() - weight).norm() / weight.norm()).item()
        rel = 1e-4 if dtype == "float32" else 0.1  # outputs are rounded to bfloat16 once more
        assert row["relative_error"] == pytest.approx(expected, rel=rel, abs=1e-6), name
    assert len(errors) == {"llama": 10, "gpt2": 11}[family]


@pytest.mark.parametrize("family", CONFIGS)
def test_every_scheme_has_its_weight_error(family):
    schemes = {
        "none": (none.quantize, 0.0, 1e-6),
        "zero_point": (zero_point.quantize, 5e-3, 0.02),
        "int8": (int8_weight_only.quantize, 3e-3, 0.01),
        "int8_dynamic": (partial(int8_dynamic.quantize, weight_only_rows=0), 3e-3, 0.01),
        "fp8": (fp8.quantize, 0.01, 0.04),
    }
    for name, (quantize, least, most) in schemes.items():
        error = block_error(weight_errors(quantize(make_model(family)), make_model(family)))
        assert least <= error <= most, (name, error)


def test_a_text_is_read_as_it_is_or_refused(tmp_path):
    model = make_model("llama")
    model.config = replace(model.config, vocab_size=256)
    path = tmp_path / "text.txt"
    path.write_bytes(b"a\r\nb\0c")
    assert read_tokens(path, model, None).tolist() == list(b"a\r\nb\0c")
    assert read_tokens(path, model, 2).tolist() == list(b"a\r")
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"text.txt is no UTF-8 text"):
        read_tokens(path, model, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "bias", "change"),
    [(-1, 0.0, 0.0006), (-1, 100.0, 0.0037), (-1, 300.0, 0.0245), (-4, 100.0, 0.0094), (-4, 300.0, 0.263)],
)
def test_a_key_channel_far_above_the_others_costs_an_int8_cache_its_quality(tmp_path, pair, bias, change):
    """As in docs/precision.md: `tiny` as a Qwen2 model, with a bias on one rotary pair of its keys."""
    config = json.loads((TINY / "config.json").read_text())
    weights = {name: weight.float() for name, weight in load_file(TINY / "model.safetensors").items()}
    num_heads, num_kv_heads, head_dim = (
        config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    biases = torch.zeros(num_kv_heads, head_dim)
    biases[:, head_dim // 2 + pair], biases[:, pair] = bias, -bias / 2
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.self_attn."
        weights[prefix + "q_proj.bias"] = torch.zeros(num_heads * head_dim)
        weights[prefix + "k_proj.bias"] = biases.flatten().clone()
        weights[prefix + "v_proj.bias"] = torch.zeros(num_kv_heads * head_dim)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "qwen2", "use_sliding_window": False}))
    model = load_model(
        path=str(tmp_path), weights="pretrained", config=None, seed=0, max_model_len=None, dtype="float32",
        device=torch.device("cpu"),
    )  # fmt: skip
    text = read_tokens(TINY / "heldout.txt", model, 4096)
    windows = {"window_len": 256, "stride": 256, "batch_size": 8}
    summary = compare_models(model, model, text, kv_dtype=torch.int8, **windows).summary()
    assert summary["perplexity_change"] == pytest.approx(change, rel=0.1)
