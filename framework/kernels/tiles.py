"""How a launch of linear_kernel cuts its work, with weights in floating point or int8: what was fastest on an H200."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

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


class Shape(NamedTuple):
    """Of a launch: rows of x, features of the result and of x, and what surrounds the product."""

    rows: int
    out_features: int
    in_features: int
    gated: bool = False  # the weight has two rows per output feature
    normed: bool = False


def choose_tiles(shape: Shape, num_sms: int) -> Tiles:
    """Tiles for a shape, chosen by what was fastest on an H200.

    One row is a matrix-vector product where the matrix is small or a norm comes with it. Else a program has 64 rows of
    the weight, the tensor core's M, or twice as many where rows are many and no sums are shared.
    """
    rows, out_features, in_features, gated, normed = shape
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


def choose_byte_tiles(shape: Shape, num_sms: int, group_size: int | None = None) -> Tiles:
    """Tiles for weights of one byte, chosen by what was fastest on an H200; `group_size` features share a scale.

    Two warps have 64 rows of the weight: too few for wgmma, whose layout would read the int8 weights two bytes at a
    time. mma.sync takes them four at a time. Beyond 32 rows wgmma's rate counts for more, unless sums are shared by
    eight programs, or it would wait for the sums of each group.
    """
    rows, out_features, in_features, gated, normed = shape
    num_tiles = ceil_div(out_features * (2 if gated else 1), 64)
    if rows == 1 and group_size is not None and 2 * num_tiles > num_sms:
        block_n, block_k = (8, 1024) if num_tiles < num_sms else (32, 512)
        return Tiles(1, block_n, block_k, 1, num_warps=4, num_stages=1, prefetch=1)
    if rows == 1 and group_size is None and not gated and num_tiles < 4 * num_sms:
        if in_features < 4096:
            return choose_tiles(shape, num_sms)
        block_k, prefetch = 512 if num_tiles >= 96 else 1024, 0 if normed else 1
        return Tiles(1, 8, block_k, 1, num_warps=4, num_stages=1, prefetch=prefetch)
    tiles = _byte_matrix_tiles(rows, num_tiles, in_features, num_sms, group_size is not None)
    return tiles if group_size is None else replace(tiles, block_k=min(tiles.block_k, group_size))


def _byte_matrix_tiles(rows: int, num_tiles: int, in_features: int, num_sms: int, grouped: bool) -> Tiles:
    """For products on tensor cores with `num_tiles` times 64 rows of the weight."""
    block_m = min(128, max(8 if grouped else 16, power_of_two(rows)))
    most_splits = power_of_two(max(1, in_features // 1024) + 1) // 2
    is_shared = num_tiles < num_sms
    split_k = min(8 if block_m == 32 or 2 * num_tiles <= num_sms else 4, most_splits) if is_shared else 1
    if block_m > 64:
        if num_tiles > 2 * num_sms:
            return Tiles(block_m, 128, 128, 1, num_warps=8, num_stages=3, prefetch=2)
        split_k = min(2, most_splits) if num_tiles * ceil_div(rows, block_m) <= num_sms // 2 else 1
        return Tiles(block_m, 64, 128, split_k, num_warps=4, num_stages=4, prefetch=2)
    if block_m == 64 and not grouped and split_k < 8:
        block_n, num_warps = (64, 4) if is_shared else (128, 8)
        return Tiles(block_m, block_n, 128, split_k, num_warps=num_warps, num_stages=3, prefetch=1)
    if block_m == 16 and not grouped and (in_features >= 2048 or not is_shared):
        return Tiles(block_m, 64, 256, split_k, num_warps=2, num_stages=3, prefetch=1)
    num_stages = 3 if block_m == 64 or (block_m == 32 and is_shared) else 4
    return Tiles(block_m, 64, 128, split_k, num_warps=2, num_stages=num_stages, prefetch=1)


def choose_dynamic_tiles(shape: Shape, num_sms: int) -> Tiles:
    """Tiles for products of int8 or float8, chosen by what was fastest on an H200."""
    rows, out_features, in_features, gated, _ = shape
    if rows > 256:
        return Tiles(256, 128, 128, 1, num_warps=8, num_stages=3, prefetch=2)
    block_m = 64 if rows <= 64 else 128
    num_tiles = ceil_div(rows, block_m) * ceil_div(out_features * (2 if gated else 1), 64)
    if num_tiles > 1.2 * num_sms:
        num_stages = 3 if block_m == 128 and num_tiles > 2 * num_sms else 4  # two programs per SM, or one
        return Tiles(block_m, 128, 128, 1, num_warps=8, num_stages=num_stages, prefetch=2)
    if 2 * num_tiles > num_sms and in_features >= 8192:
        return Tiles(block_m, 128, 128, 2, num_warps=8, num_stages=4, prefetch=2)
    split_k = 2 if num_tiles <= num_sms // 2 and in_features >= 2048 else 1
    return Tiles(block_m, 64, 256, split_k, num_warps=4, num_stages=4, prefetch=2)


def ceil_div(amount: int, size: int) -> int:
    return -(-amount // size)


def power_of_two(size: int) -> int:
    """The smallest that is at least `size`."""
    return 1 << (size - 1).bit_length()


def _power_within(size: int) -> int:
    """The largest power of two that is at most `size`."""
    return 1 << (size.bit_length() - 1)
