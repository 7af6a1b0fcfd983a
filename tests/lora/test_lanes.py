"""Rows of adapters in lanes: the same numbers, at places where vector loads may begin."""

import pytest
import torch

from framework.lora.lanes import make_lanes
from framework.lora.layout import ALIGNMENT, make_layout
from tests.quantization.small_models import make_model

TABLES = {"llama": ["lm_head", "embed_tokens", "q_proj"], "gpt2": ["lm_head", "wte", "c_attn"]}


@pytest.mark.parametrize("num_lanes", [1, 4, 30])
@pytest.mark.parametrize(("family", "has_tables"), [("llama", False), ("gpt2", False), ("llama", True), ("gpt2", True)])
def test_lanes_hold_what_rows_do(family, has_tables, num_lanes):
    layout = make_layout(make_model(family), TABLES[family] if has_tables else None)
    lanes = make_lanes(layout, num_lanes)
    rows = torch.arange(3 * layout.width).view(3, layout.width)
    slab = lanes.spread(rows, lanes.chunks)
    assert slab.shape == (num_lanes, 3, lanes.width)
    for projection in layout.projections:
        for own, other in zip(lanes.factors(projection, slab), projection.factors(rows), strict=True):
            assert torch.equal(own, other)
    assert all(first % ALIGNMENT == 0 for _, first in lanes.places.values())
    assert lanes.width % ALIGNMENT == 0


def test_lanes_are_about_equally_full():
    layout = make_layout(make_model("llama"), None)
    largest = max(max(len(p.sizes) * p.linear.in_features, sum(p.sizes)) for p in layout.projections)
    for num_lanes in (1, 2, 4):
        assert layout.width / num_lanes <= make_lanes(layout, num_lanes).width < layout.width / num_lanes + largest
