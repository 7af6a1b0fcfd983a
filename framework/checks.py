"""What a value in a config may be, and how messages and terminals show one."""

import math
from numbers import Integral, Real
from unicodedata import category

MAX_THREADS = 1024  # PyTorch hangs or crashes with many thousands
MAX_SHOWN = 80  # characters of a value in a message
MAX_LINE = 2000  # characters of a line of it
STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's categories: control, format, surrogate, line and paragraph ends


def check_threads(name: str, num_threads: int | None) -> None:
    """ValueError unless `num_threads`, the value of the key `name`, is from 1 to MAX_THREADS or None: PyTorch's own."""
    if num_threads is not None and not 1 <= num_threads <= MAX_THREADS:
        raise ValueError(f"{name} {num_threads} must be from 1 to {MAX_THREADS}")


def positive(name: str, value: float | None) -> float:
    """`value`, if it is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}={shown(value)} is not a finite number above 0")
    return float(value)


def not_negative(name: str, value: float) -> float:
    """`value`, if it is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < math.inf:
        raise ValueError(f"{name}={shown(value)} is not a finite number of at least 0")
    return float(value)


def whole(name: str, value: int | None, at_least: int = 1) -> int:
    """`value`, if it is a whole number of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        raise ValueError(f"{name}={shown(value)} is not a whole number of at least {at_least}")
    return int(value)


def shown(value: object, at_most: int = MAX_SHOWN) -> str:
    """`value` as a message shows it: its repr, of which at most `at_most` characters are kept."""
    try:
        return cut(repr(value), at_most)
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"


def cut(text: str, at_most: int = MAX_SHOWN) -> str:
    """At most so many characters of a text."""
    return text if len(text) <= at_most else f"{text[: at_most - 1]}…"


def message(text: str) -> str:
    """`text` as an error on a terminal: printable, and no line of it longer than MAX_LINE."""
    return "\n".join(printable(cut(line, MAX_LINE)) for line in text.splitlines())


def printable(text: str) -> str:
    """`text` as a terminal may have it: characters that would steer it are escaped, but for line ends and tabs."""
    return "".join(ascii(char)[1:-1] if category(char) in STEERING and char not in "\n\t" else char for char in text)
