"""What a value in a config may be, and how a message shows one."""

import math
from numbers import Integral, Real
from typing import Any

MAX_SHOWN = 80  # characters of a value in a message
MAX_THREADS = 1024  # PyTorch hangs or crashes with many thousands


def shown(value: Any) -> str:
    """`value` as a message shows it: its repr, of which at most 80 characters are kept."""
    try:
        return cut(repr(value))
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"


def cut(text: str) -> str:
    """At most 80 characters of a text."""
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


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
