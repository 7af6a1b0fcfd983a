"""Linear layers with float8_e4m3fn weights, one float32 scale per output channel (arXiv:2209.05433).

Few rows take the fused kernel of linear.py, which makes weights x's dtype in registers; more rows become float8 too,
with a scale per row, and so does the product.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from framework.kernels.linear import (
    ALONE,
    Scales,
    Surroundings,
    fused_quantize,
    launch_linear,
    shape_of,
    surrounded,
)
from framework.kernels.tiles import Tiles, choose_byte_tiles, choose_dynamic_tiles
from framework.kernels.triton_support import device_facts

FP8 = torch.float8_e4m3fn
MAX_FP8 = torch.finfo(FP8).max  # 448


def quantize_fp8(values: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) → float8_e4m3fn and float32 scales (rows, 1): each row's largest magnitude becomes 448."""
    values = values.float()
    scale = (values.abs().amax(dim=1, keepdim=True) / MAX_FP8).clamp(min=torch.finfo(torch.float32).tiny)
    return (values / scale).clamp(-MAX_FP8, MAX_FP8).to(FP8), scale


def plain_fp8_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, around: Surroundings = ALONE
) -> Tensor:
    """plain_linear with the weight that float8 `weight` (out_features, in_features) and `scale` stand for."""

    def product(normed: Tensor) -> Tensor:
        y = (normed.float() @ weight.float().T) * scale.T
        return (y if bias is None else y + bias).to(x.dtype)

    return surrounded(product, x, around)


def fused_fp8_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    around: Surroundings = ALONE,
    *,
    tiles: Tiles | None = None,
) -> Tensor:
    """What plain_fp8_linear computes, under the conditions of fused_linear."""
    shape = shape_of(x, weight, around)
    if tiles is None:
        tiles = choose_byte_tiles(shape, device_facts(x.device)[0])
        if x.element_size() == 4:
            tiles = replace(tiles, block_k=tiles.block_k // 2)
    return launch_linear(x, weight, bias, around, shape, tiles, Scales(scale))


def dynamic_fp8_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, around: Surroundings = ALONE
) -> Tensor:
    """As plain_fp8_linear, with the normed x rounded to float8 too, one scale per row; sums are float32.

    On a GPU sizes are multiples of 16.
    """

    def product(normed: Tensor) -> Tensor:
        quantized, x_scale = quantize_fp8(normed)
        if x.is_cuda:
            scale_b = scale.T.contiguous()
            y = torch._scaled_mm(quantized, weight.T, scale_a=x_scale, scale_b=scale_b, out_dtype=x.dtype)
        else:
            y = (quantized.float() @ weight.float().T * x_scale * scale.T).to(x.dtype)
        return y if bias is None else y + bias

    return surrounded(product, x, around)


def fused_dynamic_fp8_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    around: Surroundings = ALONE,
    *,
    tiles: Tiles | None = None,
) -> Tensor:
    """dynamic_fp8_linear in two Triton launches, under the conditions of fused_linear."""
    shape = shape_of(x, weight, around)
    quantized, x_scale = fused_quantize(x, around.norm_weight, around.norm_bias, around.norm_eps, FP8)
    if tiles is None:
        tiles = choose_dynamic_tiles(shape, device_facts(x.device)[0])
    after = Surroundings(delta=around.delta, activation=around.activation, residual=around.residual)
    return launch_linear(quantized, weight, bias, after, shape, tiles, Scales(scale, None, x_scale, x.dtype))
