"""How many CPU threads PyTorch may be given."""

import math
from numbers import Integral, Real

MAX_THREADS = 1024  # PyTorch hangs or crashes with many thousands


def check_threads(name: str, num_threads: int | None) -> None:
    """ValueError unless `num_threads`, the value of the key `name`, is from 1 to MAX_THREADS or None: PyTorch's own."""
    if num_threads is not None and not 1 <= num_threads <= MAX_THREADS:
        raise ValueError(f"{name} {num_threads} must be from 1 to {MAX_THREADS}")


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
