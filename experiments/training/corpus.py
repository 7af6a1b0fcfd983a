"""Text to train a small model on, as bytes: the files of a folder, some of them held out.

By default the folder is the running interpreter's standard library, which is on any machine under a free licence.
"""

import hashlib
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

DOCUMENT_START = b"\0"  # before every document; no document contains it
MAX_EXCERPT_SHARE = 1 / 8  # of a sample: so it has at least this many documents


@dataclass(frozen=True, slots=True)
class Document:
    """One file. `hash` is of its name alone, so that one held out stays so when it or others change."""

    name: str  # path from the text's folder, with forward slashes
    content: bytes
    hash: float  # uniform in [0, 1)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents by name, in two parts that share neither a name nor a content."""

    folder: Path
    train: list[Document]
    held_out: list[Document]

    @property
    def digest(self) -> str:
        """SHA-256 of the names and contents of all documents, train first."""
        return hashlib.sha256(
            b"".join(f"{d.name} {d.digest}\n".encode() for d in self.train + self.held_out)
        ).hexdigest()


def read_corpus(
    *,
    folder: str | None,
    suffixes: list[str],
    exclude: list[str],
    held_out_share: float,
    max_held_out_bytes: int,
) -> Corpus:
    """The files of `folder` (None: the standard library) with one of `suffixes`; a copy of an earlier file is dropped.

    `exclude` are shell patterns for single parts of a path below the folder. A file is held out if the hash of its path
    below the folder is under `held_out_share`, unless it is so large that it would dominate. Files that are empty or
    have a zero byte are no text. Raises ValueError if either part is empty.
    """
    if not 0.0 < held_out_share < 1.0:
        raise ValueError(f"held_out_share {held_out_share} must be between 0 and 1")
    root = Path(sysconfig.get_path("stdlib") if folder is None else folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"there is no folder of text at {root}")
    documents = list(_distinct(_read(root, suffixes, exclude)))
    held_out = [one for one in documents if one.hash < held_out_share and len(one.content) <= max_held_out_bytes]
    held_out_names = {document.name for document in held_out}
    train = [document for document in documents if document.name not in held_out_names]
    if not train or not held_out:
        raise ValueError(
            f"{root} has {len(train)} files {suffixes} to train on and {len(held_out)} held out; both parts need one"
        )
    return Corpus(root, train, held_out)


def _read(root: Path, suffixes: list[str], exclude: list[str]) -> Iterable[Document]:
    paths = [path.relative_to(root) for path in root.rglob("*") if path.suffix in suffixes]
    for path in sorted(paths, key=Path.as_posix):
        is_excluded = any(fnmatchcase(part, pattern) for part in path.parts for pattern in exclude)
        if not is_excluded and (root / path).is_file():
            name = path.as_posix()
            first_bytes = hashlib.sha256(name.encode()).digest()[:4]
            yield Document(name, (root / path).read_bytes(), int.from_bytes(first_bytes) / 2**32)


def _distinct(documents: Iterable[Document]) -> Iterable[Document]:
    seen = set()
    for document in documents:
        is_text = document.content and DOCUMENT_START not in document.content
        if is_text and document.digest not in seen:
            seen.add(document.digest)
            yield document


def join(documents: list[Document]) -> bytes:
    """What the model reads: each document after a zero byte."""
    return b"".join(DOCUMENT_START + document.content for document in documents)


def sample(documents: list[Document], num_bytes: int) -> tuple[bytes, list[str]]:
    """At most `num_bytes` of joined documents in the order of their hash, and their names.

    Each is cut after the last line that ends within an eighth of `num_bytes`, so that no document dominates.
    """
    limit = int(num_bytes * MAX_EXCERPT_SHARE)
    excerpts, names, size = [], [], 0
    for document in sorted(documents, key=lambda document: document.hash):
        excerpt = document.content[: max(0, min(limit, num_bytes - size - 1))]
        if len(excerpt) < len(document.content):
            excerpt = excerpt[: excerpt.rfind(b"\n") + 1]
        if excerpt:
            excerpts.append(DOCUMENT_START + excerpt)
            names.append(document.name)
            size += len(excerpts[-1])
    return b"".join(excerpts), names
