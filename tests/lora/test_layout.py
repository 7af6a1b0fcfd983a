"""Where an adapter's numbers lie, and which of a model's layers have any."""

import pytest
import torch

from framework.lora.adapters import RandomAdapters
from framework.lora.layout import make_layout
from tests.quantization.small_models import make_model


def random_rows(layout, name="one", ranks=(6,), seed=0):
    return RandomAdapters(ranks=list(ranks), seed=seed).load(name, layout, torch.float32)


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["self_attn.v_proj"], ["layers.1.mlp.up_proj"]])
def test_only_the_targets_have_room_or_change(targets):
    layout = make_layout(make_model("llama"), targets)
    whole = make_layout(make_model("llama"), None)
    assert layout.width < whole.width
    rows = random_rows(layout)
    names = [name for projection in layout.projections for name, *_ in projection.parts(rows)]
    for projection in layout.projections:
        for name, _, a, b in projection.parts(rows):
            is_target = any(f".{name}".endswith(f".{target}") for target in targets)
            assert (a != 0).any() == (b != 0).any() == is_target, name
    assert len(names) >= len(layout.parts(rows)) == sum(name.endswith(tuple(targets)) for name in names)


@pytest.mark.parametrize("targets", [["q_prj"], ["q_proj", "wte"], []])
def test_targets_that_the_model_does_not_have(targets):
    with pytest.raises(ValueError, match=r"lora.targets names .*self_attn.q_proj, .*mlp.down_proj"):
        make_layout(make_model("llama"), targets)
