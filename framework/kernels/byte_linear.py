"""Linear layers whose weights are int8 or float8, through the fused kernel of linear.py."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from framework.kernels.linear import ALONE, Scales, Surroundings, fused_quantize, launch_linear, shape_of
from framework.kernels.tiles import Tiles, choose_byte_tiles, choose_dynamic_tiles
from framework.kernels.triton_support import device_facts


def fused_byte_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    around: Surroundings = ALONE,
    *,
    group_size: int | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """What plain_int8_linear or plain_fp8_linear computes, by the weight's dtype; under fused_linear's conditions.

    Weights are not rounded to x's dtype.
    """
    shape = shape_of(x, weight, around)
    if tiles is None:
        tiles = choose_byte_tiles(shape, device_facts(x.device)[0], group_size)
        if x.element_size() == 4:
            tiles = replace(tiles, block_k=tiles.block_k // 2)
    return launch_linear(x, weight, bias, around, shape, tiles, Scales(scale, group_size))


def fused_dynamic_byte_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    around: Surroundings = ALONE,
    *,
    tiles: Tiles | None = None,
) -> Tensor:
    """What dynamic_int8_linear or dynamic_fp8_linear computes, in two Triton launches."""
    shape = shape_of(x, weight, around)
    quantized, x_scale = fused_quantize(x, around.norm_weight, around.norm_bias, around.norm_eps, weight.dtype)
    if tiles is None:
        tiles = choose_dynamic_tiles(shape, device_facts(x.device)[0])
    after = Surroundings(delta=around.delta, activation=around.activation, residual=around.residual)
    return launch_linear(quantized, weight, bias, after, shape, tiles, Scales(scale, None, x_scale, x.dtype))
