"""Laws of lengths: their moments, their limits, and what they refuse."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from framework.core import Request, Trace
from framework.trace.lengths import exponential_capped, fixed, lognormal, repeating, resample, uniform

NUM = 20_000


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_lengths_have_their_moments() -> None:
    assert fixed(rng(), 3, length=7).tolist() == [7, 7, 7]
    assert np.unique(uniform(rng(), NUM, low=3, high=6)).tolist() == [3, 4, 5, 6]
    assert np.median(lognormal(rng(), NUM, median=200, sigma=0.7)) == pytest.approx(200, rel=0.03)
    assert lognormal(rng(), NUM, mean=200, sigma=0.7).mean() == pytest.approx(200, rel=0.03)
    clipped = lognormal(rng(), NUM, median=200, sigma=2.0, low=50, high=400)
    assert (clipped.min(), clipped.max()) == (50, 400)
    assert exponential_capped(rng(), NUM, mean=128, cap=10**6).mean() == pytest.approx(128, rel=0.03)


@pytest.mark.parametrize("cap", [32, 128, 512, 1536])
def test_exponential_capped_share_at_the_cap(cap: int) -> None:
    lengths = exponential_capped(rng(), NUM, mean=128, cap=cap)
    assert (lengths.min(), lengths.max()) == (1, min(cap, lengths.max()))
    assert (lengths == cap).mean() == pytest.approx(math.exp(-(cap - 0.5) / 128), abs=0.01)


@pytest.mark.parametrize(
    ("draw", "keywords", "message"),
    [
        (fixed, {"length": 0}, "length=0 is not a whole number of at least 1"),
        (fixed, {"length": 2.5}, "length=2.5 is not a whole number of at least 1"),
        (uniform, {"low": 9, "high": 3}, "low=9 is above high=3"),
        (uniform, {"low": 0, "high": 3}, "low=0 is not a whole number of at least 1"),
        (lognormal, {"sigma": 1.0}, "median=None, mean=None: give exactly one"),
        (lognormal, {"sigma": 1.0, "mean": 3, "median": 3}, "median=3, mean=3: give exactly one"),
        (lognormal, {"sigma": -1.0, "mean": 3}, "sigma=-1.0 is not a finite number above 0"),
        (lognormal, {"sigma": 1.0, "mean": 0}, "mean=0 is not a finite number above 0"),
        (lognormal, {"sigma": 1.0, "median": math.nan}, "median=nan is not a finite number above 0"),
        (lognormal, {"sigma": 1.0, "mean": 3, "low": 5, "high": 4}, "low=5 is above high=4"),
        (exponential_capped, {"mean": math.inf, "cap": 3}, "mean=inf is not a finite number above 0"),
        (exponential_capped, {"mean": "many", "cap": 3}, "mean='many' is not a finite number above 0"),
        (exponential_capped, {"mean": 3, "cap": 0}, "cap=0 is not a whole number of at least 1"),
    ],
)
def test_bad_length_parameters(draw: Callable[..., np.ndarray], keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(rng(), 5, **keywords)


def test_resample_keeps_pairs_together() -> None:
    source = Trace([Request(index, 0.0, 10 * index + 10, index + 1) for index in range(5)])
    prompts, outputs = resample(rng(), 500, trace=lambda: source)
    assert set(zip(prompts.tolist(), outputs.tolist(), strict=True)) == {(10, 1), (20, 2), (30, 3), (40, 4), (50, 5)}


def test_repeating_takes_the_lengths_in_turn() -> None:
    assert repeating(rng(), 5, lengths=[100, 10]).tolist() == [100, 10, 100, 10, 100]
    with pytest.raises(ValueError, match="lengths is empty"):
        repeating(rng(), 5, lengths=[])
    with pytest.raises(ValueError, match="lengths"):
        repeating(rng(), 5, lengths=[0])
