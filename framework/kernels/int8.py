"""Linear layers with int8 weights: symmetric, one float32 scale per output channel or per group of input features.

Weights stay int8 in memory. Few rows take the fused kernel of linear.py, which makes them x's dtype in registers; the
others dequantize, or multiply int8 by int8 with scales per row of x.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.kernels.linear import ALONE, Surroundings, surrounded

# At 256 the fused kernel takes 315 µs a layer of Llama-8B, dequantize + matmul 747 (H200); where they cross is open
MAX_FUSED_ROWS = 256
MIN_INT_MM_ROWS = 17  # of torch._int_mm on CUDA, whose other sizes are multiples of 8


def quantize_int8(values: Tensor, group_size: int | None = None) -> tuple[Tensor, Tensor]:
    """(rows, columns) → int8 of the same shape and float32 scales (rows, groups): values ≈ int8 * scale.

    The scales are stored by columns, as the fused kernel reads them.
    A group's largest magnitude becomes 127; a group is a row, or `group_size` of its columns, the last one fewer. The
    error is at most scale / 2.
    """
    rows, columns = values.shape
    size = columns if group_size is None else group_size
    values = F.pad(values.float(), (0, -columns % size)).view(rows, -1, size)
    scale = (values.abs().amax(dim=2) / 127).clamp(min=torch.finfo(torch.float32).tiny)  # rows of zeros: not 0 / 0
    quantized = (values / scale[:, :, None]).round().clamp(-127, 127).to(torch.int8)
    return quantized.view(rows, -1)[:, :columns].contiguous(), scale.T.contiguous().T


def dequantize_int8(quantized: Tensor, scale: Tensor, group_size: int | None, dtype: torch.dtype) -> Tensor:
    """The inverse of quantize_int8, in `dtype`."""
    if group_size is not None:
        scale = scale.repeat_interleave(group_size, dim=1)[:, : quantized.shape[1]]
    return (quantized * scale).to(dtype)


def plain_int8_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    around: Surroundings = ALONE,
    *,
    group_size: int | None = None,
) -> Tensor:
    """plain_linear with the weight that int8 `weight` (out_features, in_features) and `scale` stand for.

    A scale per output channel is applied to the product, so that weights are cast and not made anew; not in float16,
    which would overflow.
    """

    def product(normed: Tensor) -> Tensor:
        if group_size is not None or x.dtype == torch.float16:
            return F.linear(normed, dequantize_int8(weight, scale, group_size, x.dtype), bias)
        y = F.linear(normed, weight.to(x.dtype)) * scale.T
        return (y if bias is None else y + bias).to(x.dtype)

    return surrounded(product, x, around)


def dynamic_int8_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, around: Surroundings = ALONE
) -> Tensor:
    """As plain_int8_linear, with the normed x rounded to int8 too, one scale per row; sums are exact in int32.

    `scale` is (out_features, 1).
    """

    def product(normed: Tensor) -> Tensor:
        quantized, x_scale = quantize_int8(normed)
        y = int_matmul(quantized, weight) * x_scale * scale.T
        return (y if bias is None else y + bias).to(x.dtype)

    return surrounded(product, x, around)


def int_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """x (rows, columns) @ weight.T (columns, out_features), int8 → exact int32.

    torch._int_mm, with zeros up to the sizes it takes on CUDA: 17 rows, and multiples of 8 of the other two.
    """
    if x.device.type != "cuda":
        return torch._int_mm(x, weight.T)
    rows, out_features = x.shape[0], weight.shape[0]
    more_columns, more_features = -x.shape[1] % 8, -out_features % 8
    if more_columns or more_features:  # copies the weight: no model at hand has such sizes
        weight = F.pad(weight, (0, more_columns, 0, more_features))
    if more_columns or rows < MIN_INT_MM_ROWS:
        x = F.pad(x, (0, more_columns, 0, max(0, MIN_INT_MM_ROWS - rows)))
    return torch._int_mm(x, weight.T)[:rows, :out_features]
