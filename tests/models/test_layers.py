"""A surrounded linear layer equals the plain formula; what adapters add comes before the activation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from framework.models.layers import Linear

ROWS, IN, OUT = 3, 8, 6


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return Linear(IN, OUT)


@pytest.mark.parametrize("make_norm", [None, nn.RMSNorm, nn.LayerNorm])
@pytest.mark.parametrize("activation", [None, "gelu", "silu_gate"])
@pytest.mark.parametrize("has_adapters", [False, True])
def test_norm_product_adapters_activation_residual(layer, make_norm, activation, has_adapters):
    x, residual = torch.randn(ROWS, IN), torch.randn(ROWS, OUT // 2 if activation == "silu_gate" else OUT)
    norm = make_norm and make_norm(IN, eps=1e-5)
    normed = norm(x) if norm else x
    added = torch.randn(IN, OUT)
    layer.lora = (lambda given: given @ added) if has_adapters else None
    y = F.linear(normed, layer.weight, layer.bias) + (normed @ added if has_adapters else 0.0)
    if activation == "gelu":
        y = F.gelu(y, approximate="tanh")
    elif activation == "silu_gate":
        y = F.silu(y[:, : OUT // 2]) * y[:, OUT // 2 :]
    with torch.no_grad():
        torch.testing.assert_close(layer(x, norm=norm, activation=activation, residual=residual), y + residual)


def test_few_rows_take_a_fused_kernel_where_an_engine_says_so(layer):
    taken = []
    layer.compute = lambda x, is_fused, surroundings: taken.append(is_fused)
    for max_fused_rows in (0, 2):
        layer.max_fused_rows = max_fused_rows
        for num_rows in (0, 1, 2, 3):
            layer(torch.zeros(num_rows, IN))
    assert taken == [False] * 4 + [False, True, True, False]
