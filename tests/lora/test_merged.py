"""A merged adapter is B @ A in the weights, of its targets only; quantized weights are refused."""

import copy

import pytest
import torch

from framework.lora.adapters import RandomAdapters
from framework.lora.layout import make_layout
from framework.lora.merged import merge_adapter
from framework.quantization import int8_weight_only
from tests.quantization.small_models import CONFIGS, make_model


@pytest.mark.parametrize("family", CONFIGS)
def test_the_weights_change_by_b_times_a(family):
    model, source = make_model(family), RandomAdapters(ranks=[4])
    before = copy.deepcopy(model)
    merge_adapter(model, adapters=lambda: source, adapter_id="a")
    layout = make_layout(before, None)
    rows = source.load("a", layout, torch.float32)
    for old, new in zip(layout.projections, make_layout(model, None).projections, strict=True):
        change = torch.cat([b.T @ a for _, _, a, b in old.parts(rows)])
        torch.testing.assert_close(new.linear.weight - old.linear.weight, change, atol=1e-6, rtol=1e-4)
    assert torch.equal(model.embed_tokens.weight, before.embed_tokens.weight)


def test_other_layers_than_the_targets_stay_as_they_are():
    model, before = make_model("llama"), make_model("llama")
    merge_adapter(model, adapters=lambda: RandomAdapters(ranks=[4]), adapter_id="a", targets=["down_proj"])
    changed = {
        name
        for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True)
        if (new != old).any()
    }
    assert changed == {f"layers.{index}.down_proj.weight" for index in range(2)}


def test_quantized_weights_are_refused():
    model = int8_weight_only.quantize(make_model("llama"))
    with pytest.raises(ValueError, match=r"lora=merged .* needs quantization=none"):
        merge_adapter(model, adapters=lambda: RandomAdapters(ranks=[4]), adapter_id="a")
