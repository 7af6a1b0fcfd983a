"""Where adapters come from: folders in PEFT's format, or seeded noise; each becomes rows of a Layout."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from framework.checks import whole
from framework.lora.adapter_file import CONFIG_FILE, Extras, open_adapter
from framework.lora.layout import Layout
from framework.models.files import inside
from framework.paths import locate

NOISE_STD = 0.02
NUM_OFFSETS = 2**22  # places in the noise where a random adapter may begin


class AdapterSource(Protocol):
    """Where adapters come from, by their id."""

    def names(self, num_adapters: int) -> list[str]:
        """The ids of its first `num_adapters` adapters; ValueError if it has fewer."""

    def check(self, adapter_id: str, layout: Layout) -> int:
        """The adapter's rank; ValueError naming the adapter if it cannot be loaded."""

    def load(self, adapter_id: str, layout: Layout, dtype: torch.dtype) -> Tensor:
        """(rank, width) on the host, as `layout` says; B transposed and multiplied by the adapter's scaling."""

    def load_whole(self, adapter_id: str, layout: Layout) -> tuple[Tensor, Extras]:
        """The same in float32, and what only a merge can serve, which `check` refuses."""


class SavedAdapters:
    """Folders in PEFT's format: that of an adapter is `path`/id."""

    def __init__(self, *, path: str) -> None:
        self.path = locate(path)
        if not self.path.is_dir():
            raise ValueError(f"adapters.path={path!r} is no folder, neither from here nor in the repository")

    def names(self, num_adapters: int) -> list[str]:
        """In the order of their names, where adapter-2 comes before adapter-10."""
        found = sorted((file.parent.name for file in self.path.glob(f"*/{CONFIG_FILE}")), key=_in_counting_order)
        if len(found) < num_adapters:
            there = f": {', '.join(found)}" if found else ""
            raise ValueError(f"{num_adapters} adapters are asked for, and {self.path} has {len(found)}{there}")
        return found[:num_adapters]

    def check(self, adapter_id: str, layout: Layout) -> int:
        """Reads the file once: an infinite number would be seen only in the tokens."""
        adapter = open_adapter(self._folder(adapter_id), layout)
        adapter.check_has_factors_alone()
        for _ in adapter.tensors("A", "B"):
            pass
        return adapter.rank

    def load(self, adapter_id: str, layout: Layout, dtype: torch.dtype) -> Tensor:
        return load_adapter(self._folder(adapter_id), layout, dtype)

    def load_whole(self, adapter_id: str, layout: Layout) -> tuple[Tensor, Extras]:
        adapter = open_adapter(self._folder(adapter_id), layout)
        return adapter.rows(torch.float32), adapter.extras()

    def _folder(self, adapter_id: str) -> Path:
        folder = inside(self.path, adapter_id)
        if not (folder / CONFIG_FILE).is_file():
            raise ValueError(f"there is no adapter {adapter_id!r}: {folder} holds no {CONFIG_FILE}")
        return folder


class RandomAdapters:
    """An adapter for every id, cut from one pool of normal(0, 0.02) noise: thousands take no more memory than one.

    An adapter's rank, one of `ranks`, and its numbers depend on `seed` and its id alone.
    """

    def __init__(self, *, ranks: list[int], seed: int = 0) -> None:
        if not ranks:
            raise ValueError("ranks is empty: it must be whole numbers of at least 1")
        ranks = [whole("ranks", rank) for rank in ranks]
        self.ranks, self.seed = ranks, seed
        self._noise: dict[tuple[int, torch.dtype], Tensor] = {}  # (width, dtype) → the pool

    def names(self, num_adapters: int) -> list[str]:
        return [f"adapter-{index}" for index in range(num_adapters)]

    def check(self, adapter_id: str, layout: Layout) -> int:
        return self.ranks[self._hash(adapter_id) % len(self.ranks)]

    def load(self, adapter_id: str, layout: Layout, dtype: torch.dtype) -> Tensor:
        rank = self.check(adapter_id, layout)
        start = 16 * (self._hash(f"{adapter_id} starts") % (NUM_OFFSETS // 16))
        rows = self._pool(layout, dtype)[start : start + rank * layout.width].view(rank, layout.width)
        if all(all(projection.has_adapter) for projection in layout.projections):
            return rows
        rows = rows.clone()
        layout.clear_others(rows)
        return rows

    def load_whole(self, adapter_id: str, layout: Layout) -> tuple[Tensor, Extras]:
        return self.load(adapter_id, layout, torch.float32), Extras()

    def _pool(self, layout: Layout, dtype: torch.dtype) -> Tensor:
        key = (layout.width, dtype)
        if key not in self._noise:
            size = NUM_OFFSETS + max(self.ranks) * layout.width
            noise = torch.empty(size, dtype=dtype, pin_memory=torch.cuda.is_available())
            self._noise[key] = noise.normal_(0.0, NOISE_STD, generator=torch.Generator().manual_seed(self.seed))
        return self._noise[key]

    def _hash(self, text: str) -> int:
        return zlib.crc32(f"{self.seed} {text}".encode())


def load_adapter(folder: Path, layout: Layout, dtype: torch.dtype) -> Tensor:
    """(rank, width) of `dtype`, zero where the adapter changes nothing; ValueError as SavedAdapters.check."""
    adapter = open_adapter(folder, layout)
    adapter.check_has_factors_alone()
    return adapter.rows(dtype)


def _in_counting_order(name: str) -> list[tuple[int, str]]:
    """Digits are compared as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
