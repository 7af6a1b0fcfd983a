"""Files that appear whole or not at all, digests of data, and a lock that jobs in one folder share."""

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd

Json = dict[str, Any]  # what a JSON file holds


def digest_of(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


class GrowingTable:
    """A CSV of rows on disk as they come, as unfinished-NAME; when all are there, it takes the place of NAME."""

    def __init__(self, path: Path) -> None:
        self.path, self.unfinished = path, path.with_name(f"unfinished-{path.name}")
        self.rows: list[Mapping[str, object]] = []

    def add(self, rows: Iterable[Mapping[str, object]]) -> None:
        self.rows += list(rows)  # all or none: measuring them may be interrupted
        if not self.rows:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.unfinished, self.table().to_csv(index=False))

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.rows and kind is None:
            self.unfinished.replace(self.path)
        elif self.rows and kind is KeyboardInterrupt:
            raise KeyboardInterrupt(f"what was measured is in {self.unfinished}") from None


def write_json(path: Path, data: object) -> None:
    write_atomically(path, json.dumps(finite(data), indent=2, allow_nan=False) + "\n")


def finite(data: object) -> object:
    """JSON has neither NaN nor infinity: null stands for both."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(output_dir: Path) -> Iterator[None]:
    """One job at a time gathers the points and draws, so that the last one to end draws them all."""
    output_dir.mkdir(parents=True, exist_ok=True)
    with (output_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
