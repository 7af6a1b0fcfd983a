"""An attached adapter is the merged one, trains without touching the model, and leaves nothing behind."""

from functools import partial

import pytest
import torch

from experiments.training.training import window_loss
from framework.lora.adapters import RandomAdapters
from framework.lora.attached import attached, initial_rows
from framework.lora.layout import make_layout
from framework.lora.merged import merge_adapter
from framework.measure.perplexity import window_logits
from tests.quantization.small_models import make_model

WINDOWS = torch.arange(60).view(3, 20)
CUDA = pytest.param(
    "cuda",
    marks=pytest.mark.gpu,
)


class LargeAdapters(RandomAdapters):
    """So large that they change logits a lot."""

    def load(self, *arguments):
        return super().load(*arguments) * 10.0


@pytest.mark.parametrize("targets", [None, 1])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_attached_is_merged(family, targets):
    targets = targets and {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"]}[family]
    model, source = make_model(family), LargeAdapters(ranks=[4])
    base = window_logits(model, WINDOWS)
    layout = make_layout(model, targets)
    with attached(layout, source.load("one", layout, torch.float32)):
        logits = window_logits(model, WINDOWS)
    assert torch.equal(window_logits(model, WINDOWS), base)
    merged = merge_adapter(model, adapters=partial(LargeAdapters, ranks=[4]), adapter_id="one", targets=targets)
    torch.testing.assert_close(logits, window_logits(merged, WINDOWS), atol=1e-4, rtol=1e-4)
    assert (logits - base).abs().max() > 0.1


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_only_the_targets_train(family, device):
    model, windows = make_model(family, device=device), WINDOWS.to(device)
    base = window_logits(model, windows)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layout = make_layout(model, {"llama": ["q_proj", "v_proj"], "gpt2": ["attn.c_proj"]}[family])
    rows = initial_rows(layout, 4, seed=0).to(device).requires_grad_(True)
    optimizer = torch.optim.SGD([rows], lr=1.0)
    with attached(layout, rows):
        assert torch.equal(window_logits(model, windows), base)
        losses = []
        for _ in range(3):
            loss = window_loss(model, windows)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]
    for a, b in layout.parts(rows.detach()).values():
        assert a.any()
        assert b.any()
    others = rows.detach().clone()
    for factors in layout.parts(others).values():
        for factor in factors:
            factor.zero_()
    assert not others.any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_initial_rows_depend_on_the_seed_alone():
    layout = make_layout(make_model("llama"), None)
    rows = initial_rows(layout, 4, seed=0)
    assert torch.equal(rows, initial_rows(layout, 4, seed=0))
    assert not torch.equal(rows, initial_rows(layout, 4, seed=1))
    for a, b in layout.parts(rows).values():
        bound = a.shape[1] ** -0.5
        assert bound / 2 < a.abs().max() <= bound
        assert not b.any()
    with pytest.raises(ValueError, match="rank 0 must be at least 1"):
        initial_rows(layout, 0, seed=0)


def test_layers_are_free_again_after_an_error():
    model = make_model("llama")
    layout = make_layout(model, None)
    with pytest.raises(RuntimeError), attached(layout, torch.zeros(2, layout.width - 16)):
        window_logits(model, WINDOWS)
    assert all(projection.linear.lora is None for projection in layout.projections)
