"""Download of a dataset: into a temporary file beside the target, checked, then renamed, so that no half file stays."""

import hashlib
import os
import urllib.request
from http.client import HTTPException
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

TIMEOUT = 15.0  # seconds without an answer or a byte
CHUNK_SIZE = 1 << 20  # bytes


def download(url: str, path: Path, sha256: str | None = None) -> None:
    """Fetch `url` to `path`, with a progress bar.

    `sha256` (hexadecimal) is checked; None: the sum is printed instead. ConnectionError says what to do without a
    network; ValueError shows both sums where they differ. Nothing is left at `path` then.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        actual = _fetch(url, part)
        if sha256 is None:
            print(f"{path.name}: SHA-256 {actual} (no published sum to compare it with)")
        elif actual != sha256.lower():
            raise ValueError(f"{url}: SHA-256 is {actual}, but {sha256} was expected; the download was deleted")
        part.replace(path)
    except (OSError, HTTPException) as error:
        advice = f"without a network, put the file (SHA-256 {sha256 or 'unknown'}) there by other means and run again"
        raise ConnectionError(f"could not download {url} to {path}: {error}; {advice}") from error
    finally:
        part.unlink(missing_ok=True)


def check_sum(path: Path, sha256: str) -> None:
    """ValueError where the file is not the published one, by its SHA-256 (hexadecimal)."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256.lower():
        raise ValueError(
            f"{path} is not the published file: its SHA-256 is {actual}, not {sha256}; delete it, and it is downloaded "
            "again, or name it as trace.path to replay it as it is"
        )


def _fetch(url: str, part: Path) -> str:
    """Stream `url` into `part`; the SHA-256 of what came, in hexadecimal."""
    digest = hashlib.sha256()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, part.open("wb") as file, Progress(*columns) as bar:
        length = response.headers["Content-Length"]
        task = bar.add_task(f"downloading {url.rsplit('/', 1)[-1]}", total=None if length is None else int(length))
        while chunk := response.read(CHUNK_SIZE):
            file.write(chunk)
            digest.update(chunk)
            bar.advance(task, len(chunk))
        if length is not None and file.tell() != int(length):
            raise ConnectionError(f"the connection ended after {file.tell()} of {length} bytes")
    return digest.hexdigest()
