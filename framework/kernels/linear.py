"""A linear layer of few rows with its norm, bias, activation and residual in one kernel, beside plain PyTorch.

Such a layer is as fast as its weights are read, so each is read once, and the first ones before the kernel ahead is
done. The weight tile is the left operand of the product: output features fill the tensor core's 64 rows, tokens its N.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.kernels.tiles import Shape, Tiles, ceil_div, choose_tiles, power_of_two
from framework.kernels.triton_support import MAX_COUNTERS, device_facts
from framework.kernels.triton_support import counters as counters_of

ACTIVATIONS = (None, "silu_gate", "gelu")


class Surroundings(NamedTuple):
    """What every linear function here may have around its product; see plain_linear."""

    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    norm_eps: float = 0.0
    delta: Tensor | None = None
    activation: str | None = None
    residual: Tensor | None = None


class Scales(NamedTuple):
    """What int8 or float8 numbers are multiples of, float32.

    `weight` (out_features, groups) is stored by columns, one per `group_size` features (None: one column). If x is of
    bytes too, `x` (rows,) is its scale and `dtype` that of the result.
    """

    weight: Tensor | None = None
    group_size: int | None = None
    x: Tensor | None = None
    dtype: torch.dtype | None = None


ALONE, UNSCALED = Surroundings(), Scales()


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, around: Surroundings = ALONE) -> Tensor:
    """residual + activation(norm(x) @ weight.T + bias + delta) for x (rows, in_features).

    weight is (out_features, in_features), delta (rows, out_features), what adapters add. The norm is RMSNorm if only
    norm_weight (in_features,) is given, LayerNorm if norm_bias is too. "gelu" is the tanh approximation; "silu_gate" is
    silu(first half of the columns) * second half, so that the result, like the residual, is (rows, out_features / 2).
    """
    return surrounded(lambda normed: F.linear(normed, weight, bias), x, around)


@torch.library.custom_op("framework::add_product_", mutates_args=("sums",))
def add_product_(sums: Tensor, x: Tensor, weight: Tensor) -> None:
    """sums += x @ weight.T. An addition that torch.compile sees through is made to a copy of `sums`."""
    sums.addmm_(x, weight.T)


@add_product_.register_fake
def _(sums: Tensor, x: Tensor, weight: Tensor) -> None:
    """Nothing is made."""


def in_place_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, around: Surroundings = ALONE) -> Tensor:
    """plain_linear that adds the product to the delta, else to the residual, which nobody may need afterwards.

    It does so where nothing but the product is added to it.
    """
    into_delta = around.delta is not None
    sums = around.delta if into_delta else around.residual
    if sums is None or bias is not None or (around.activation is not None and not into_delta):
        return plain_linear(x, weight, bias, around)

    def product(normed: Tensor) -> Tensor:
        add_product_(sums, normed, weight)
        return sums

    return surrounded(product, x, around._replace(delta=None) if into_delta else around._replace(residual=None))


def surrounded(product: Callable[[Tensor], Tensor], x: Tensor, around: Surroundings) -> Tensor:
    """residual + activation(product(norm(x)) + delta), each part where it is given, as plain_linear has them."""
    norm_weight, norm_bias, norm_eps, delta, activation, residual = around
    _check_activation(activation)
    if norm_weight is not None:
        x = plain_norm(x, norm_weight, norm_bias, norm_eps)
    y = product(x)
    if delta is not None:
        y = y + delta
    if activation == "silu_gate":
        gate, up = y.chunk(2, dim=-1)
        y = F.silu(gate) * up
    elif activation == "gelu":
        y = F.gelu(y, approximate="tanh")
    return y if residual is None else residual + y


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """RMSNorm of the rows of x, or LayerNorm where there is a bias."""
    if bias is None:
        return F.rms_norm(x, x.shape[1:], weight, eps)
    return F.layer_norm(x, x.shape[1:], weight, bias, eps)


def fused_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    around: Surroundings = ALONE,
    *,
    tiles: Tiles | None = None,
) -> Tensor:
    """What plain_linear computes, to the last bits of x's dtype and the same bits every run; sums are float32.

    One stream at a time may use it, and it must have run once on the device before a CUDA graph captures it. Weights
    and norm vectors are read before the previous kernel is done, so they must not be results of fused_linear. More than
    one row with a norm are two kernels. Tensors are contiguous, but rows of x and residual may be apart.
    """
    shape = shape_of(x, weight, around)
    if tiles is None:
        tiles = choose_tiles(shape, device_facts(x.device)[0])
        if x.element_size() == 4:  # same bytes per tile
            tiles = replace(tiles, block_k=tiles.block_k // 2)
    return launch_linear(x, weight, bias, around, shape, tiles)


def shape_of(x: Tensor, weight: Tensor, around: Surroundings) -> Shape:
    _check_activation(around.activation)
    assert weight.shape[1] == x.shape[1], (x.shape, weight.shape)
    gated = around.activation == "silu_gate"
    out_features = weight.shape[0] // 2 if gated else weight.shape[0]
    return Shape(x.shape[0], out_features, x.shape[1], gated, around.norm_weight is not None)


def launch_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    around: Surroundings,
    shape: Shape,
    tiles: Tiles,
    scales: Scales = UNSCALED,
) -> Tensor:
    """fused_linear with given tiles.

    A group_size is a multiple of block_k, or for one row of 16. An x of bytes has no norm and no group_size.
    """
    _check_operands(x, weight, around, shape, tiles, scales)
    norm_weight, norm_bias, norm_eps, delta, activation, residual = around
    rows, out_features, in_features, gated, _ = shape
    pdl = tiles.pdl and device_facts(x.device)[1]
    if norm_weight is not None and (tiles.block_m > 1 or scales.group_size):
        x = fused_norm(x, norm_weight, norm_bias, norm_eps, pdl)
        norm_weight = norm_bias = None
    out = torch.empty(rows, out_features, dtype=scales.dtype or x.dtype, device=x.device)
    num_tiles = ceil_div(rows, tiles.block_m) * ceil_div(out_features, tiles.block_n // 2 if gated else tiles.block_n)
    partials = counters = None
    if tiles.split_k > 1:
        assert num_tiles <= MAX_COUNTERS, num_tiles
        parts = (num_tiles, tiles.split_k, tiles.block_n, tiles.block_m)
        partials, counters = torch.empty(parts, dtype=torch.float32, device=x.device), counters_of(x.device)
    even_k = in_features % tiles.block_k == 0
    _kernels().linear_kernel[(num_tiles * tiles.split_k,)](
        x, scales.x, weight, scales.weight, bias, norm_weight, norm_bias, delta, residual, out, partials, counters,
        rows, out_features, in_features, x.stride(0), 0 if residual is None else residual.stride(0), norm_eps,
        ACTIVATION=activation, BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        SPLIT_K=tiles.split_k, NUM_STAGES=tiles.num_stages, EVEN_K=even_k,
        NORM_BLOCK=1 if norm_weight is None else power_of_two(in_features),
        PREFETCH=tiles.prefetch if pdl and even_k and weight.data_ptr() % 16 == 0 else 0, PDL=pdl,
        GROUP_SIZE=scales.group_size or 0, BY_BITS=weight.itemsize == 1 and x.is_cuda,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages, launch_pdl=pdl,
    )  # fmt: skip
    return out


def _check_operands(
    x: Tensor, weight: Tensor, around: Surroundings, shape: Shape, tiles: Tiles, scales: Scales
) -> None:
    delta, residual, scale, group_size = around.delta, around.residual, scales.weight, scales.group_size
    assert weight.is_contiguous()
    assert x.stride(1) == 1
    assert residual is None or (residual.shape == shape[:2] and residual.stride(1) == 1), residual.shape
    assert delta is None or (delta.shape == (shape.rows, weight.shape[0]) and delta.is_contiguous()), delta.shape
    assert (scale is None) == (weight.itemsize > 1)
    assert scale is None or (scale.T.is_contiguous() and scale.dtype == torch.float32)
    assert group_size is None or group_size % (16 if tiles.block_m == 1 else tiles.block_k) == 0, (group_size, tiles)
    assert (scales.x is None) == (x.itemsize > 1)
    assert scales.x is None or (x.dtype == weight.dtype and group_size is None)


def fused_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, pdl: bool | None = None) -> Tensor:
    """plain_norm in one Triton launch, under the conditions of fused_linear."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch_norm(x, weight, bias, eps, out, None, pdl)
    return out


def fused_quantize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype = torch.int8
) -> tuple[Tensor, Tensor]:
    """x, after its norm if there is a weight, in `dtype`, of the same shape, with float32 scales (rows,).

    dtype is int8, as quantize_int8 makes it, or float8_e4m3fn, as quantize_fp8 does. In one Triton launch, under the
    conditions of fused_linear.
    """
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    _launch_norm(x, weight, bias, eps, out, scale, None)
    return out, scale


def _launch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    out: Tensor,
    out_scale: Tensor | None,
    pdl: bool | None,
) -> None:
    pdl = device_facts(x.device)[1] if pdl is None else pdl
    block = power_of_two(x.shape[1])
    _kernels().norm_kernel[(x.shape[0],)](
        x, weight, bias, out, out_scale, x.shape[1], x.stride(0), eps, BLOCK=block, PDL=pdl,
        num_warps=min(16, max(1, block // 512)), launch_pdl=pdl,
    )  # fmt: skip


def _kernels() -> ModuleType:
    try:
        from framework.kernels import linear_triton
    except ImportError as error:  # no wheel for this platform
        raise ImportError("fused_linear needs the package triton; plain_linear computes the same without it") from error
    return linear_triton


def _check_activation(activation: str | None) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}, must be one of {ACTIVATIONS}")
