"""Files that appear whole or not at all, digests of data, and a lock that jobs in one folder share.

What is unfinished has UNFINISHED before its name. One job at a time writes in a folder, so that what a killed one left
is overwritten or goes away.
"""

import errno
import fcntl
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd

from framework.paths import is_writable

Json = dict[str, Any]  # what a JSON file holds
UNFINISHED = ".unfinished-"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


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
        with locked(self.path.parent):
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


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """`path` gets the whole content (text: as UTF-8) or stays as it was; a full disk's OSError says what was needed."""
    data = content.encode() if isinstance(content, str) else content
    unfinished = path.with_name(UNFINISHED + path.name)
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OSError(error.errno, f"{error.strerror}: {path} needs {len(data):,} bytes") from error
        raise
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, name: str = ".lock") -> Iterator[None]:
    """One job at a time reads and writes in `folder`. Not to be taken twice. What is read only needs no lock.

    A lock of another name is for something else. Raises ValueError where the file system has no locks: jobs on several
    machines would write one file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not is_writable(folder):
        yield
        return
    with (folder / name).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise ValueError(f"{folder}: its file system has no locks, which jobs that share a folder need") from error
        yield
