"""Copies of KV blocks to host memory and back: beside the steps where there is a GPU, before them on a CPU.

On a GPU blocks go through a buffer of the device, so that a step waits only until what it will overwrite is in there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from framework.core import Batch
from framework.engine.torch_engine.in_flight import Waited, pinned, record_event
from framework.kernels.layer_cache import LayerCache

BUFFER_BYTES = 256 * 2**20  # of each of two; more than these hold goes out in portions that the step waits for
ALIGNMENT = 16  # bytes at which a part of a block begins

Pairs = list[tuple[int, int]]


class Swap:
    """Room for `num_blocks` blocks of `caches` on the host, pinned where there is a GPU. A block is one row of bytes.

    ValueError if the host has no such room.
    """

    def __init__(self, caches: list[LayerCache], block_size: int, num_blocks: int) -> None:
        self.parts = [part for cache in caches for part in parts_of(cache, block_size)]
        self.device = self.parts[0].device
        sizes = [-(-part[0].nbytes // ALIGNMENT) * ALIGNMENT for part in self.parts]
        self.starts = np.cumsum([0, *sizes]).tolist()
        row_bytes, on_gpu = self.starts[-1], self.device.type == "cuda"
        try:
            self.on_host = torch.empty(num_blocks, row_bytes, dtype=torch.uint8, pin_memory=on_gpu).fill_(0)
        except RuntimeError as error:
            size = f"{num_blocks} blocks of {row_bytes:,} bytes, {num_blocks * row_bytes / 2**30:.1f} GiB"
            raise ValueError(f"engine.num_swap_blocks={size}, cannot be allocated on the host: lower it") from error
        self.num_buffered = max(1, min(num_blocks, BUFFER_BYTES // row_bytes))
        buffers = torch.empty(2, self.num_buffered, row_bytes, dtype=torch.uint8, device=self.device)
        self.outgoing, self.incoming = buffers
        self.stream = torch.cuda.Stream(self.device) if on_gpu else None
        self.begin()

    def begin(self) -> None:
        """Forget what is on its way; afterwards everything that a copy takes has been loaded."""
        if self.stream is not None:
            torch.cuda.synchronize(self.device)
        self.later: Pairs = []  # what comes back beside the step
        self.steps_before: torch.cuda.Event | None  # which may still write to the blocks that something comes back to
        self.sent: torch.cuda.Event | None = None  # what goes out has left the buffer
        self.arrived: torch.cuda.Event | None = None  # what came back beside the step before is in its blocks
        self._out([(0, 0)])
        self.steps_before = self._now()
        self._back([(0, 0)])
        self._wait_for_arrival()

    def send(self, swap_out: Pairs) -> Waited | None:
        """Let the step wait for what came back beside the one before, and for what it will overwrite; None: nothing."""
        if self.arrived is None and not swap_out:
            return None
        started, start = time.perf_counter(), self._now()
        self._wait_for_arrival()
        self._out(swap_out)
        return self._waited(started, start)

    def fetch(self, swap_in: Pairs, is_read: bool) -> Waited | None:
        """Let the step wait for what comes back, if it reads some of it itself; None: it comes beside the step."""
        self.later, self.steps_before = swap_in, self._now() if swap_in else None
        if not swap_in or (self.stream is not None and not is_read):
            return None
        started, start = time.perf_counter(), self._now()
        self.beside()
        self._wait_for_arrival()
        return self._waited(started, start)

    def beside(self) -> None:
        """Start what may take its time, once the step is launched."""
        pairs, self.later = self.later, []
        if pairs:
            self._back(pairs)

    def finish(self) -> None:
        """Wait for all copies beside the step."""
        if self.stream is not None and (self.sent is not None or self.arrived is not None):
            self.stream.synchronize()
            self.sent = self.arrived = None

    def _waited(self, started: float, start: torch.cuda.Event | None) -> Waited:
        end = self._now()
        events = None if start is None or end is None else (start, end)
        return Waited(set(), time.perf_counter() - started, events)

    def _now(self) -> torch.cuda.Event | None:
        return None if self.stream is None else record_event()

    def _wait_for_arrival(self) -> None:
        if self.arrived is not None:
            torch.cuda.current_stream().wait_event(self.arrived)
            self.arrived = None

    def _out(self, pairs: Pairs) -> None:
        """Copy (block, host block) as all steps before leave them; the steps from now on may overwrite them."""
        for blocks, host_blocks in self._portions(pairs):
            if self.sent is not None:
                torch.cuda.current_stream().wait_event(self.sent)
            index = self._index(blocks)
            for part, rows in zip(self.parts, self._rows(self.outgoing, len(blocks)), strict=True):
                rows.copy_(part.index_select(0, index))
            with self._after(self._now()):
                for first, end in runs(host_blocks):
                    host = self.on_host[host_blocks[first] : host_blocks[first] + end - first]
                    host.copy_(self.outgoing[first:end], non_blocking=True)
                self.sent = self._now()

    def _back(self, pairs: Pairs) -> None:
        """Copy (host block, block) beside whatever comes after `steps_before`."""
        with self._after(self.steps_before):
            for host_blocks, blocks in self._portions(pairs):
                for first, end in runs(host_blocks):
                    host = self.on_host[host_blocks[first] : host_blocks[first] + end - first]
                    self.incoming[first:end].copy_(host, non_blocking=True)
                index = self._index(blocks)
                for part, rows in zip(self.parts, self._rows(self.incoming, len(blocks)), strict=True):
                    part.index_copy_(0, index, rows)
            self.arrived = self._now()

    def _portions(self, pairs: Pairs) -> Iterator[tuple[list[int], list[int]]]:
        """As many pairs at a time as a buffer holds, taken apart."""
        for first in range(0, len(pairs), self.num_buffered):
            sources, targets = zip(*pairs[first : first + self.num_buffered], strict=True)
            yield list(sources), list(targets)

    def _index(self, blocks: list[int]) -> Tensor:
        index = pinned(len(blocks), dtype=torch.int64)
        index.numpy()[:] = blocks
        return index.to(self.device, non_blocking=True)

    def _rows(self, buffer: Tensor, num: int) -> Iterator[Tensor]:
        """Of the first `num` rows what belongs to each part, in its own dtype and shape."""
        for part, start in zip(self.parts, self.starts, strict=False):
            columns = buffer[:num, start : start + part[0].nbytes]
            yield columns.view(part.dtype).view(num, *part.shape[1:])

    def _after(self, event: torch.cuda.Event | None) -> AbstractContextManager[object]:
        """On the stream of the copies, after the event; on a CPU here and now."""
        if self.stream is None or event is None:
            return nullcontext()
        self.stream.wait_event(event)
        return torch.cuda.stream(self.stream)


def copy_blocks(caches: list[LayerCache], block_size: int, pairs: Pairs) -> float:
    """Copy blocks by pairs (from, to) in every layer; no block is both. Seconds that it took."""
    parts = [part for cache in caches for part in parts_of(cache, block_size)]
    device = parts[0].device
    sources, targets = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).to(device).unbind(1)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for part in parts:
        part.index_copy_(0, targets, part.index_select(0, sources))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def parts_of(cache: LayerCache, block_size: int) -> list[Tensor]:
    """Views of all that a layer keeps, with the blocks as the first dimension."""
    parts = [values.view(-1, block_size, *values.shape[1:]) for values in (cache.k, cache.v)]
    if cache.scales is not None:
        parts.append(cache.scales.view(*cache.scales.shape[:2], -1, block_size).permute(2, 0, 1, 3))
    return parts


def reads(batch: Batch, pairs: Pairs) -> bool:
    """Whether a sequence of the batch has one of the blocks that come back."""
    blocks = {block for _, block in pairs}
    return bool(blocks) and any(not blocks.isdisjoint(sequence.block_table) for sequence in batch.sequences)


def runs(host_blocks: list[int]) -> Iterator[tuple[int, int]]:
    """Where blocks follow each other: (first, end) of each such part, which is copied at once."""
    ends = [index for index in range(1, len(host_blocks)) if host_blocks[index] != host_blocks[index - 1] + 1]
    yield from pairwise([0, *ends, len(host_blocks)])
