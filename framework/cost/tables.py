"""The entries of a cost model's tables: where they are, what each step has of them, and how far they bend."""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
import numpy.typing as npt

from framework.cost.least_squares import Floats

BIN = 1.5  # rows that no graph holds share an entry of the table within this factor
STEP = 0.1  # what a step from an entry to the next counts, of a bend: enough for an end that no step tells
FAR = 4  # the factor from an entry to the next in the table of rates per context token
LONG = (64, 128, 256, 512, 1024, 2048, 4096, 8192)  # tokens from which on a longest sequence may take no longer


def padded(num_rows: int, sizes: list[int]) -> int:
    """The rows of the next graph; of more than any graph holds, as many as they are."""
    index = bisect_left(sizes, num_rows)
    return sizes[index] if index < len(sizes) else num_rows


def choose_knots(rows: npt.NDArray[np.int64], sizes: list[int]) -> list[int]:
    """Where the table of rows has its entries: at graphs' sizes, at both ends, and one in each bin between."""
    knots = {int(rows.min()), int(rows.max())} | (set(rows.tolist()) & set(sizes))
    others = np.array([num for num in rows if num not in knots], dtype=float)
    bins = np.floor(np.log(np.maximum(others, 1)) / math.log(BIN))
    knots |= {int(np.median(others[bins == one])) for one in np.unique(bins)}
    return sorted(knots)


def choose_far_knots(rows: npt.NDArray[np.int64]) -> list[int]:
    """Where the table of rates per context token has its entries: they change little from one size to the next."""
    low, high = int(rows.min()), int(rows.max())
    return sorted({low, high, *(FAR**power for power in range(1, 10) if low < FAR**power < high)})


def choose_near_knots(rows: npt.NDArray[np.int64]) -> list[int]:
    """Where the table of what the longest sequence takes has its entries: both ends, and powers of two between."""
    low, high = int(rows.min()), int(rows.max())
    return sorted({low, high, *(2**power for power in range(1, 20) if low < 2**power < high)})


def shares_of_long(num_tokens: Floats, long_tokens: int) -> Floats:
    """Of what a longest sequence of `long_tokens` or more takes."""
    return np.minimum(num_tokens, long_tokens) / long_tokens


def hats(rows: npt.NDArray[np.int64], knots: list[int]) -> Floats:
    """(steps, knots): how much of each entry a step has, by linear interpolation."""
    identity = np.eye(len(knots))
    return np.stack([np.interp(rows, knots, column) for column in identity], axis=1)


def bends_of(knots: list[int], rows: npt.NDArray[np.int64], seconds: Floats) -> Floats:
    """(2 knots - 3, knots): how far every inner entry is from the line between its neighbours, then how far every one
    is from the next, which counts for little.

    It is a share of the `seconds` that steps of about so many `rows` take, in the median.
    """
    nearest = np.abs(rows[:, None] - np.array(knots)).argmin(axis=1)
    known = np.unique(nearest)
    medians = [np.median(seconds[nearest == index]) for index in known]
    levels = np.interp(knots, np.array(knots)[known], medians)
    bends = np.zeros((max(len(knots) - 2, 0), len(knots)))
    for index, (low, middle, high) in enumerate(zip(knots, knots[1:], knots[2:], strict=False)):
        share = (middle - low) / (high - low)
        bends[index, index : index + 3] = np.array([share - 1, 1, -share]) / levels[index + 1]
    return np.vstack((bends, STEP * differences_of(len(knots), 1.0) / levels[:-1, None]))


def differences_of(num_entries: int, share: float) -> Floats:
    """(entries - 1, entries): how far every rate is from the next one; `share` makes a share of a step's seconds."""
    return share * (np.eye(num_entries) - np.eye(num_entries, k=1))[:-1]
