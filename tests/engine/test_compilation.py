"""The compiled parts of a block are whole graphs, few of them, whatever the weights are kept as."""

from functools import partial

import pytest
import torch

from framework.engine.compilation import configure_model
from framework.kernels.linear import plain_linear
from framework.models import linear as layers
from framework.quantization import fp8, int8_dynamic, int8_weight_only, none, zero_point
from tests.models.test_loading import logits
from tests.quantization.models import CONFIGS, make_model

SCHEMES = [
    none.quantize,
    zero_point.quantize,
    int8_weight_only.quantize,
    partial(int8_weight_only.quantize, group_size=32),
    int8_dynamic.quantize,
    partial(int8_dynamic.quantize, weight_only_rows=0),
    fp8.quantize,
]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("quantize", SCHEMES)
def test_blocks_compile_without_graph_breaks_or_a_graph_per_size(monkeypatch, quantize, family):
    """fullgraph=True raises at a graph break, and so does dynamo at its ninth graph of one method."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    model = quantize(make_model(family))
    sizes = [torch.arange(num_tokens) % 90 for num_tokens in (40, 1, 16, 64)]
    plain = [logits(model, tokens) for tokens in sizes]
    configure_model(model, fused=False, compile=True)
    for tokens, expected in zip(sizes, plain, strict=True):
        torch.testing.assert_close(logits(model, tokens), expected)
    assert 0 < len(graphs) <= 6  # of `project` and `finish` one each, one more for a single row, or for few rows


@pytest.mark.parametrize("activation", ["silu_gate", None])
@torch.inference_mode()
def test_gated_products_are_fused_up_to_more_rows_in_one_graph(monkeypatch, activation):
    taken = []

    def record(x, *arguments, **surroundings):
        taken.append(len(x))
        return plain_linear(x, *arguments, **surroundings)

    monkeypatch.setattr(layers, "fused_linear", record)
    linear = layers.Linear(8, 2 * 6)
    norm = torch.nn.RMSNorm(8)
    linear.max_fused_rows = linear.fused_rows
    torch.compiler.reset()
    compiled = torch.compile(linear, dynamic=True, fullgraph=True, backend="aot_eager")
    around = {"norm": norm, "activation": activation}
    for rows in (100, 300):
        compiled(torch.zeros(rows, 8), **around)
    taken.clear()
    with torch.compiler.set_stance("fail_on_recompile"):
        for rows in (65, 256, 257, 1000):
            x = torch.randn(rows, 8)
            expected = plain_linear(x, linear.weight, linear.bias, norm_weight=norm.weight, activation=activation)
            torch.testing.assert_close(compiled(x, **around), expected)
    assert taken == ([65, 256] if activation else [])
    for rows in (0, 64, 65, 257):
        linear(torch.zeros(rows, 8), **around)
    assert taken == ([65, 256, 64, 65] if activation else [64])
