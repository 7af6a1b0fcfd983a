"""Losses of a text: each token scored once, as in a naive loop over transformers; loss and gradients of training."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from experiments.training.training import schedule, window_loss
from framework.core import Request
from framework.engine.torch_engine import TorchEngine
from framework.engine.torch_engine.prompt_tokens import prompt_token_ids
from framework.measure.perplexity import WindowLosses, make_windows, window_logits, window_losses
from framework.models.loading import load_model
from tests.engine.torch_engine.hand_schedules import record_logits
from tests.models.checkpoints import make_hf_model
from tests.quantization.small_models import make_model


def pair(name, folder):
    """The same weights in transformers' model and in ours."""
    oracle = make_hf_model(name)
    oracle.save_pretrained(folder)
    options = {"weights": "pretrained", "config": None, "seed": 0, "max_model_len": None}
    return oracle, load_model(path=str(folder), dtype="float32", device="cpu", **options)


@pytest.mark.parametrize("num_tokens", [2, 3, 9, 10, 11, 40])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_every_token_but_the_first_is_scored_once(num_tokens, stride):
    windows = make_windows(num_tokens, 8, stride)
    assert [token for _, end, scored in windows for token in range(scored, end)] == list(range(1, num_tokens))
    assert {end - start for start, end, _ in windows} == {min(9, num_tokens)}
    assert all(scored - start >= 8 - stride + 1 for start, _, scored in windows[1:])
    assert all(start >= 0 for start, _, _ in windows)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("stride", [5, 16])
@torch.no_grad()
def test_equals_a_naive_loop_over_transformers(name, stride, tmp_path):
    oracle, model = pair(name, tmp_path)
    text = torch.randint(97, (61,), generator=torch.Generator().manual_seed(0))
    losses = window_losses(model, text, window_len=16, stride=stride, batch_size=3)
    naive = []
    for start, end, scored in make_windows(61, 16, stride):
        logs = oracle(text[None, start:end]).logits[0].log_softmax(-1)
        naive.append(-sum(logs[token - start - 1, text[token]].item() for token in range(scored, end)))
    np.testing.assert_allclose(losses.nll, naive, rtol=1e-4)
    assert losses.num_tokens.sum() == 60
    assert losses.perplexity == pytest.approx(math.exp(sum(naive) / 60), rel=1e-4)
    one_by_one = window_losses(model, text, window_len=16, stride=stride, batch_size=1)
    np.testing.assert_allclose(losses.nll, one_by_one.nll, rtol=1e-5)


@torch.inference_mode()
def test_windows_attend_to_what_an_int8_cache_keeps():
    """As a decode step after a prompt does, which reads the cache."""
    model = make_model("llama")
    engine = TorchEngine(model, num_blocks=16, block_size=8, kv_dtype="int8")
    tokens = [*prompt_token_ids(Request(0, 0.0, 40, 2), model.config.vocab_size, seed=0).tolist(), 3]
    _, (expected, _) = record_logits(engine)
    found, exact = (window_logits(model, torch.tensor([tokens]), dtype)[0, -1] for dtype in (torch.int8, None))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (exact - expected).abs().max() > 1e-2


def test_interval_contains_the_mean():
    rng = np.random.default_rng(0)
    losses = WindowLosses(rng.normal(100.0, 10.0, 200), np.full(200, 50))
    low, high = losses.interval()
    assert low < losses.mean < high
    assert high - low == pytest.approx(2 * 1.96 * 10 / 50 / math.sqrt(200), rel=0.2)


@pytest.mark.parametrize(
    ("num_tokens", "window_len", "stride", "message"),
    [(20, 8, 0, "stride 0"), (20, 8, 9, "stride 9"), (1, 8, 8, "1 tokens"), (999, 300, 300, "longer than the model's")],
)
def test_bad_windows(num_tokens, window_len, stride, message, tmp_path):
    _, model = pair("llama", tmp_path)
    text = torch.zeros(num_tokens, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        window_losses(model, text, window_len=window_len, stride=stride, batch_size=1)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_loss_and_gradients_equal_transformers(name, tmp_path):
    oracle, model = pair(name, tmp_path)
    windows = torch.randint(97, (3, 25), generator=torch.Generator().manual_seed(0))
    loss = window_loss(model.requires_grad_(True), windows)
    loss.backward()
    logits = oracle(windows[:, :-1]).logits
    expected = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    theirs = {key.removeprefix("model."): one.grad for key, one in oracle.named_parameters()}
    parameters = dict(model.named_parameters())
    assert all(one.grad is not None and one.grad.any() for one in parameters.values())
    for parameter in parameters.values():
        parameter.data = parameter.grad  # so that the gradients are read out by their checkpoint names
    if model.config.tie_embeddings:
        theirs.pop("lm_head.weight", None)
    ours = model.checkpoint_tensors()
    assert ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[key], gradient, atol=1e-4 * gradient.abs().max().item(), rtol=1e-3)


def test_schedule():
    shares = [schedule(step, 10, 2) for step in range(10)]
    assert shares[:3] == [0.5, 1.0, 1.0]
    assert shares == sorted(shares[:2]) + sorted(shares[2:], reverse=True)
    assert 0.0 < shares[-1] < 0.05
