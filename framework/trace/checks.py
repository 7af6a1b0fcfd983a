"""Checks of parameters that come from a YAML: each returns its value or raises a ValueError that shows it."""

import math
from numbers import Integral, Real


def positive(name: str, value: float | None) -> float:
    """`value`, if it is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}={value!r} is not a finite number above 0")
    return float(value)


def whole(name: str, value: int | None, at_least: int = 1) -> int:
    """`value`, if it is a whole number of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        raise ValueError(f"{name}={value!r} is not a whole number of at least {at_least}")
    return int(value)
