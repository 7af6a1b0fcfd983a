"""Files that others wrote, JSON and safetensors: every error names the file, and nothing leaves its folder."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError, safe_open

from framework.checks import cut, shown

MAX_NAME_BYTES = 255  # that a file system takes
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of the dtypes that weights may have


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ValueError with the place for what is no JSON, and for another value than an object.

    A byte order mark is refused: transformers, which reads the same folder's tokenizer, does not take one.
    """
    content = path.read_bytes()
    if content.startswith(codecs.BOM_UTF8):
        raise ValueError(f"{path} begins with a byte order mark: save it as UTF-8 without one")
    try:
        value = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 (byte {error.start}): is it the right file?") from None
    except ValueError as error:
        problem = f"is no JSON ({cut(str(error))})" if content.strip() else "is empty"
        raise ValueError(f"{path} {problem}; correct it or copy it again") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {shown(value)}, and not a JSON object")
    return value


@contextmanager
def opened_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file, whose tensors are read one at a time; ValueError naming one that is missing or broken."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is missing or broken ({cut(str(error))}): copy it again") from error


def inside(folder: Path, name: str) -> Path:
    """`folder` / `name`; ValueError for a name that is absolute, goes upwards, or is none of a file system.

    Links are followed: the hub's cache consists of them.
    """
    parts = PurePath(name).parts
    is_name = parts and all(len(os.fsencode(part)) <= MAX_NAME_BYTES and "\0" not in part for part in parts)
    if not is_name or PurePath(name).is_absolute() or ".." in parts:
        raise ValueError(f"{shown(name)} is no name inside {folder}")
    return folder / name
