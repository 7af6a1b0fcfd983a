"""Which rows of a decode step are split, and in which order all are read: planned on the host, or on the device.

A plan made on the device follows the lengths, so that a CUDA graph may replay with any.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from framework.kernels.arrays import IntArray
from framework.kernels.triton_support import check_triton, jit, jit_for_any, tl, triton

MAX_SPLITS = 32
MIN_KEYS = 256  # of a split, by what was fastest inside a mixed step on an H200


def decode_items(context_lens: IntArray, num_parts: int, min_keys: int = MIN_KEYS) -> IntArray:
    """Items (3, num_items) for rows 0, 1, …: the row, its split and its number of splits.

    A row has as many splits as it is parts long, rounded, where a part is the sum of all rows by `num_parts`, or
    `min_keys` if that is more. So there are at most `num_parts` items more than rows. The longest come first, so that
    no program is left with one.
    """
    total = int(context_lens.sum())
    times, per = (num_parts, total) if total >= min_keys * num_parts else (1, min_keys)
    lens = np.asarray(context_lens, dtype=np.int64)
    num_splits = np.clip((2 * lens * times + per) // (2 * per), 1, MAX_SPLITS)
    order = np.argsort(-(lens // num_splits), kind="stable")
    rows = np.repeat(order, num_splits[order])
    ends = np.cumsum(num_splits[order])
    splits = np.arange(len(rows)) - np.repeat(ends - num_splits[order], num_splits[order])
    return np.stack((rows, splits, num_splits[rows]))


def plain_decode_plan(context_lens: Tensor, num_parts: int, min_keys: int = MIN_KEYS) -> Tensor:
    """decode_items of (num_rows,) int32 lengths, (3, num_rows + num_parts) int32.

    Places beyond the last item are split 1 of 1, which there is not: splits count from 0. Rows of length 0 have an item
    too.
    """
    items = decode_items(context_lens.cpu().numpy(), num_parts, min_keys)
    plan = torch.tensor([[0], [1], [1]], dtype=torch.int32).repeat(1, len(context_lens) + num_parts)
    plan[:, : items.shape[1]] = torch.from_numpy(items)
    return plan.to(context_lens.device)


def decode_plan(context_lens: Tensor, num_parts: int, min_keys: int = MIN_KEYS) -> Tensor:
    """plain_decode_plan, of at least one row, as one Triton launch."""
    check_triton("decode_plan")
    num_rows = len(context_lens)
    plan = torch.empty((3, num_rows + num_parts), dtype=torch.int32, device=context_lens.device)
    block = 32
    _decode_plan_kernel[(triton.cdiv(num_rows, block),)](
        context_lens, plan, num_rows, num_parts, min_keys,
        MAX_SPLITS=MAX_SPLITS, BLOCK=block, OTHERS=128, num_warps=4,
    )  # fmt: skip
    return plan


@jit_for_any("num_rows", "num_parts", "min_keys")
def _decode_plan_kernel(
    context_lens, plan, num_rows, num_parts, min_keys,
    MAX_SPLITS: tl.constexpr, BLOCK: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """Program b: the items of rows b * BLOCK …, each behind those of all rows that are longer per split."""
    total = tl.zeros([OTHERS], tl.int64)
    for first in range(0, num_rows, OTHERS):
        other = first + tl.arange(0, OTHERS)
        total += tl.load(context_lens + other, other < num_rows, other=0)
    per = tl.sum(total, 0)
    is_long = per >= tl.cast(min_keys, tl.int64) * num_parts
    times, per = tl.where(is_long, num_parts, 1), tl.where(is_long, per, min_keys)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    num_splits, length = _splits(context_lens, row, num_rows, times, per, MAX_SPLITS)
    start, num_items = tl.zeros([BLOCK], tl.int32), 0
    for first in range(0, num_rows, OTHERS):
        other = first + tl.arange(0, OTHERS)
        other_splits, other_length = _splits(context_lens, other, num_rows, times, per, MAX_SPLITS)
        is_before = (other_length[None, :] == length[:, None]) & (other[None, :] < row[:, None])
        is_ahead = (other_length[None, :] > length[:, None]) | is_before
        start += tl.sum(tl.where(is_ahead, other_splits[None, :], 0), 1)
        num_items += tl.sum(other_splits, 0)

    split, max_items = tl.arange(0, MAX_SPLITS)[None, :] + tl.zeros([BLOCK, 1], tl.int32), num_rows + num_parts
    at, is_item = plan + start[:, None] + split, split < num_splits[:, None]
    tl.store(at, row[:, None], is_item)
    tl.store(at + max_items, split, is_item)
    tl.store(at + 2 * max_items, num_splits[:, None], is_item)
    if tl.program_id(0) == 0:
        for first in range(num_items, max_items, OTHERS):
            place = first + tl.arange(0, OTHERS)
            tl.store(plan + place, 0, place < max_items)
            tl.store(plan + max_items + place, 1, place < max_items)
            tl.store(plan + 2 * max_items + place, 1, place < max_items)


@jit
def _splits(context_lens, row, num_rows, times, per, MAX_SPLITS: tl.constexpr):
    """Each row's number of splits, 0 beyond the last row, and the slots of each split."""
    is_row = row < num_rows
    length = tl.load(context_lens + row, is_row, other=0)
    num_splits = (2 * length.to(tl.int64) * times + per) // (2 * per)
    num_splits = tl.minimum(tl.maximum(num_splits, 1), MAX_SPLITS).to(tl.int32)
    return tl.where(is_row, num_splits, 0), length // num_splits
