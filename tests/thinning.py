"""Thins out exhaustive parametrisations: a few combinations run every time, the others every night."""

from itertools import product

import pytest


def mostly_nightly(*values):
    """Every combination, one value of each; those beyond a few in which every value occurs are marked `nightly`."""
    longest = max(map(len, values))
    few = {tuple(index % len(each) for each in values) for index in range(longest)}
    return [
        pytest.param(
            *(each[index] for each, index in zip(values, indices, strict=True)),
            marks=[] if indices in few else [pytest.mark.nightly],
        )
        for indices in product(*(range(len(each)) for each in values))
    ]


def every_nth(num: int, values):
    """Every `num`-th of the values from the first on; those between them are marked `nightly`."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=[pytest.mark.nightly] if i % num else [])
        for i, value in enumerate(values)
    ]
