"""Seeded damage: bytes that change, and values that nobody meant."""

import math
from typing import Any

import numpy as np

TOKENS = (*rb'nan inf -1 1e400 " , { ] \ '.split(), b"9" * 400, b"", b" ", b"\0", b"\n", b"\r", b"\xff", b"\xc3\xa9")
VALUES = (None, True, -1, 0, 2.5, math.inf, math.nan, 10**30, "", "x" * 100_000, "\x1b[31m", "../..", [], {}, [[]])
TARGETS = (7, None, "os.sep", "os.getcwd", "no.where", "..", "builtins.int")


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """`content` with one to three places that are other bytes, lost, doubled, or a token that means something."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        start, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 20))
        match int(rng.integers(4)):
            case 0:
                data[start : start + 1] = rng.bytes(1)
            case 1:
                del data[start : start + length]
            case 2:
                data[start:start] = data[start : start + length]
            case 3:
                data[start : start + length] = TOKENS[int(rng.integers(len(TOKENS)))]
    return bytes(data)


def altered(tree: Any, rng: np.random.Generator) -> Any:
    """A copy of a config or a JSON file in which one value, anywhere, is another one, gone, or joined by one more."""
    if isinstance(tree, dict) and tree and rng.random() > 0.15:
        key = list(tree)[int(rng.integers(len(tree)))]
        match int(rng.integers(12)):
            case 0:
                return {name: value for name, value in tree.items() if name != key}
            case 1:
                return {**tree, f"{key}x": tree[key]}
            case _:
                return {**tree, key: altered(tree[key], rng)}
    if isinstance(tree, list) and tree and rng.random() > 0.3:
        index = int(rng.integers(len(tree)))
        return [*tree[:index], altered(tree[index], rng), *tree[index + 1 :]]
    choices = (*VALUES, *({"_target_": target} for target in TARGETS))
    return choices[int(rng.integers(len(choices)))]
