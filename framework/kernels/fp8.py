"""Linear layers with float8_e4m3fn weights, one float32 scale per output channel (arXiv:2209.05433).

Few rows take the fused kernel of linear.py, which makes weights x's dtype in registers; more rows become float8 too,
with a scale per row, and so does the product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from framework.kernels.linear import ALONE, Surroundings, surrounded

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
