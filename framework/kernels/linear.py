"""A linear layer of few rows with its norm, bias, activation and residual in one kernel, beside plain PyTorch.

Such a layer is as fast as its weights are read, so each is read once, and the first ones before the kernel ahead is
done. The weight tile is the left operand of the product: output features fill the tensor core's 64 rows, tokens its N.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.kernels.triton_support import MAX_COUNTERS, device_facts
from framework.kernels.triton_support import counters as counters_of

ACTIVATIONS = (None, "silu_gate", "gelu")
MAX_VECTOR_WEIGHTS = 2**25  # beyond, tensor cores are faster for one row too
MAX_VECTOR_FEATURES = 3072


@dataclass(frozen=True, slots=True)
class Tiles:
    """How one launch cuts its work; tile sizes are powers of two.

    block_m rows (1: a matrix-vector product without tensor cores), block_n rows of the weight (under silu_gate half as
    many output features), block_k input features per iteration, split_k programs that share one tile's sum.
    `prefetch` (0 or a power of two) iterations of weights are brought to L2 before the previous kernel is done; `pdl`
    lets the launches overlap.
    """

    block_m: int
    block_n: int
    block_k: int
    split_k: int
    num_warps: int
    num_stages: int
    prefetch: int = 4
    pdl: bool = True


class Surroundings(TypedDict, total=False):
    """What every linear function here may have around its product; see plain_linear."""

    norm_weight: Tensor | None
    norm_bias: Tensor | None
    norm_eps: float
    delta: Tensor | None
    activation: str | None
    residual: Tensor | None


def plain_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    **surroundings: Unpack[Surroundings],
) -> Tensor:
    """residual + activation(norm(x) @ weight.T + bias + delta) for x (rows, in_features).

    weight is (out_features, in_features), delta (rows, out_features), what adapters add. The norm is RMSNorm if only
    norm_weight (in_features,) is given, LayerNorm if norm_bias is too. "gelu" is the tanh approximation; "silu_gate" is
    silu(first half of the columns) * second half, so that the result, like the residual, is (rows, out_features / 2).
    """
    return surrounded(lambda normed: F.linear(normed, weight, bias), x, **surroundings)


def surrounded(
    product: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float = 0.0,
    delta: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """residual + activation(product(norm(x)) + delta), each part where it is given, as plain_linear has them."""
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
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float = 0.0,
    delta: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """What plain_linear computes, to the last bits of x's dtype and the same bits every run; sums are float32.

    One stream at a time may use it, and it must have run once on the device before a CUDA graph captures it. Weights
    and norm vectors are read before the previous kernel is done, so they must not be results of fused_linear. More than
    one row with a norm are two kernels. Tensors are contiguous, but rows of x and residual may be apart.
    """
    rows, out_features, in_features, gated = problem_size(x, weight, activation)
    if tiles is None:
        tiles = choose_tiles(rows, out_features, in_features, device_facts(x.device)[0], gated, norm_weight is not None)
        if x.element_size() == 4:  # same bytes per tile
            tiles = replace(tiles, block_k=tiles.block_k // 2)
    return launch_linear(x, weight, bias, norm_weight, norm_bias, norm_eps, delta, activation, residual, tiles)


def problem_size(x: Tensor, weight: Tensor, activation: str | None) -> tuple[int, int, int, bool]:
    """Rows, output features of the result, input features, and whether the columns are halved."""
    _check_activation(activation)
    gated = activation == "silu_gate"
    assert weight.shape[1] == x.shape[1], (x.shape, weight.shape)
    return x.shape[0], weight.shape[0] // 2 if gated else weight.shape[0], x.shape[1], gated


def launch_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
    delta: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    tiles: Tiles,
    scale: Tensor | None = None,
    group_size: int | None = None,
    x_scale: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """fused_linear with given tiles. `scale`, float32, is that of an int8 weight, a column per `group_size` features.

    Without a group_size it has one column. With one, it is a multiple of block_k. If x is int8 too, x_scale (rows,)
    float32 is its scale, `dtype` that of the result, and there is no norm and no group_size.
    """
    kernels = _kernels()
    rows, out_features, in_features, gated = problem_size(x, weight, activation)
    assert weight.is_contiguous()
    assert x.stride(1) == 1
    assert residual is None or (residual.shape == (rows, out_features) and residual.stride(1) == 1), residual.shape
    assert delta is None or (delta.shape == (rows, weight.shape[0]) and delta.is_contiguous()), delta.shape
    assert (scale is None) == weight.is_floating_point()
    assert scale is None or (scale.is_contiguous() and scale.dtype == torch.float32)
    assert group_size is None or group_size % tiles.block_k == 0, (group_size, tiles)
    assert (x_scale is None) == x.is_floating_point()
    _, has_pdl = device_facts(x.device)
    pdl = tiles.pdl and has_pdl
    if norm_weight is not None and tiles.block_m > 1:
        x = fused_norm(x, norm_weight, norm_bias, norm_eps, pdl)
        norm_weight = norm_bias = None
    out = torch.empty(rows, out_features, dtype=dtype or x.dtype, device=x.device)
    num_tiles = ceil_div(rows, tiles.block_m) * ceil_div(out_features, tiles.block_n // 2 if gated else tiles.block_n)
    partials = counters = None
    if tiles.split_k > 1:
        assert num_tiles <= MAX_COUNTERS, num_tiles
        shape = (num_tiles, tiles.split_k, tiles.block_n, tiles.block_m)
        partials, counters = torch.empty(shape, dtype=torch.float32, device=x.device), counters_of(x.device)
    even_k = in_features % tiles.block_k == 0
    kernels.linear_kernel[(num_tiles * tiles.split_k,)](
        x, x_scale, weight, scale, bias, norm_weight, norm_bias, delta, residual, out, partials, counters,
        rows, out_features, in_features, x.stride(0), 0 if residual is None else residual.stride(0), norm_eps,
        ACTIVATION=activation, BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        SPLIT_K=tiles.split_k, NUM_STAGES=tiles.num_stages, EVEN_K=even_k,
        NORM_BLOCK=1 if norm_weight is None else power_of_two(in_features),
        PREFETCH=tiles.prefetch if pdl and even_k and weight.data_ptr() % 16 == 0 else 0, PDL=pdl,
        GROUP_SIZE=group_size or 0, BY_BITS=weight.dtype == torch.int8 and x.is_cuda,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages, launch_pdl=pdl,
    )  # fmt: skip
    return out


def fused_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, pdl: bool | None = None) -> Tensor:
    """plain_norm in one Triton launch, under the conditions of fused_linear."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch_norm(x, weight, bias, eps, out, None, pdl)
    return out


def fused_quantize(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """x, after its norm if there is a weight, as int8 of the same shape with float32 scales (rows,): x ≈ int8 * scale.

    As quantize_int8 does, in one Triton launch, under the conditions of fused_linear.
    """
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
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


def choose_tiles(
    rows: int, out_features: int, in_features: int, num_sms: int, gated: bool = False, normed: bool = False
) -> Tiles:
    """Tiles for a shape, chosen by what was fastest on an H200; out_features are those of the result.

    One row is a matrix-vector product where the matrix is small or a norm comes with it. Else a program has 64 rows of
    the weight, the tensor core's M, or twice as many where rows are many and no sums are shared.
    """
    num_weights = out_features * in_features * (2 if gated else 1)
    if rows == 1 and not gated and num_weights < MAX_VECTOR_WEIGHTS and (normed or in_features <= MAX_VECTOR_FEATURES):
        return _vector_tiles(out_features, in_features, num_sms, normed)
    block_m = min(128, max(16, power_of_two(rows)))
    num_tiles = ceil_div(rows, block_m) * ceil_div(out_features, 64)
    if gated and 2 * num_tiles >= num_sms:
        if block_m <= 32:
            return Tiles(block_m, 64, 128, 1, num_warps=4, num_stages=4, prefetch=2)
        return Tiles(block_m, 128, 64, 1, num_warps=4, num_stages=3, prefetch=2)
    if not gated and in_features >= 2048 and num_tiles <= num_sms and block_m <= 64:
        return _sharing_tiles(rows, block_m, num_tiles, in_features, num_sms)
    split_k = min(8, _power_within(max(1, 2 * num_sms // num_tiles)))
    block_k, num_stages = 128, 3 if gated else 4
    if (split_k == 1 and in_features < 4096) or (block_m >= 32 and gated) or block_m >= 64:
        block_k, num_stages = 64, 5 if block_m < 64 else 3
    return Tiles(block_m, 128 if gated else 64, block_k, split_k, num_warps=4, num_stages=num_stages, prefetch=2)


def _vector_tiles(out_features: int, in_features: int, num_sms: int, normed: bool) -> Tiles:
    """For one row without tensor cores; more features per program where that still gives every SM one."""
    if out_features < 8 * num_sms and in_features >= 2048:
        return Tiles(1, 4, 1024, 1, num_warps=2, num_stages=1, prefetch=8)
    if in_features < 2048:
        return Tiles(1, 16 if normed else 4, 256, 1, num_warps=4, num_stages=1, prefetch=8)
    return Tiles(1, 16, 512, 1, num_warps=4, num_stages=1, prefetch=0 if normed else 8)


def _sharing_tiles(rows: int, block_m: int, num_tiles: int, in_features: int, num_sms: int) -> Tiles:
    """For products of fewer tiles than SMs, whose sums are shared, by what was fastest inside a step.

    All programs should run at once and leave shared memory to the kernel after them, which starts meanwhile: one per SM
    with 256 input features per iteration, or, where that leaves many SMs idle, up to three with 128.
    """
    each = num_sms // num_tiles
    if rows == 1 and 3 * num_tiles > num_sms:
        block_k, num_stages, split_k = 128, 4, 2 * num_sms // num_tiles
    elif block_m == 64:
        block_k, num_stages, split_k = 128, 3, min(2 * num_sms // num_tiles, max(each, in_features // 2048))
    elif 4 * num_tiles * _power_within(each) >= 3 * num_sms:
        block_k, num_stages, split_k = 256, 3, min(each, in_features // 512)
    else:
        block_k, num_stages, split_k = 128, 3, min(8, 3 * num_sms // num_tiles, in_features // 384)
    return Tiles(block_m, 64, block_k, _power_within(split_k), num_warps=4, num_stages=num_stages, prefetch=2)


def ceil_div(amount: int, size: int) -> int:
    return -(-amount // size)


def power_of_two(size: int) -> int:
    """The smallest that is at least `size`."""
    return 1 << (size - 1).bit_length()


def _power_within(size: int) -> int:
    """The largest power of two that is at most `size`."""
    return 1 << (size.bit_length() - 1)


def _kernels() -> ModuleType:
    try:
        from framework.kernels import linear_triton
    except ImportError as error:  # no wheel for this platform
        raise ImportError("fused_linear needs the package triton; plain_linear computes the same without it") from error
    return linear_triton


def _check_activation(activation: str | None) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}, must be one of {ACTIVATIONS}")
