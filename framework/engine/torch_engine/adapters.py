"""Brings adapters from disk to the host on first use, and from the host to their slots when the scheduler says so.

What a step needs is copied before it; what is for later is copied beside it, on a stream of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from framework.core import Batch, Request
from framework.engine.torch_engine.in_flight import Waited, record_event
from framework.kernels.arrays import IntArray
from framework.lora.pool import AdapterPool


class Placement:
    """The pool's adapters on the host, in pinned memory where there is a GPU, and the copies that are on their way.

    Without a pool there is nothing to do, and `num_slots` is 0. An adapter takes `blocks_per_adapter` blocks of the KV
    cache (0: it has memory of its own), of `block_size` tokens each.
    """

    def __init__(self, pool: AdapterPool | None, blocks_per_adapter: int = 0, block_size: int = 1) -> None:
        self.pool, self.block_size, self.blocks_per_adapter = pool, block_size, blocks_per_adapter
        self.num_slots = 0 if pool is None else pool.num_slots
        self._layers = [] if pool is None else [projection.linear.lora for projection in pool.layout.projections]
        self._reasons: dict[str, str] = {}  # why an adapter cannot be served; empty if it can
        self._on_host: dict[str, Tensor] = {}
        self._on_the_way: dict[int, torch.cuda.Event] = {}
        self._ahead: dict[int, str] = {}  # loads that the last step does not need
        self._stream = None if pool is None or not pool.slab.is_cuda else torch.cuda.Stream(pool.slab.device)

    def names(self, num_adapters: int) -> list[str]:
        """Ids of so many adapters that there are; ValueError for fewer, and none at all without a pool."""
        return [] if self.pool is None else self.pool.source.names(num_adapters)

    def use(self, adapter_id: str, num_rows: int) -> int:
        """Let the next `num_rows` rows of the model take this adapter, in slot 1; its number of parameters.

        Without a pool, 0.
        """
        if self.pool is None:
            return 0
        loaded = self.pool.load(adapter_id)
        self.pool.put(1, loaded)
        rows = np.ones(num_rows, dtype=np.int64)
        arrays = self.tables(rows, rows)
        device = self.pool.slab.device
        self.set_step({name: torch.from_numpy(array).to(device) for name, array in arrays.items()}, arrays)
        return sum(a.numel() + b.numel() for a, b in self.pool.layout.parts(loaded).values())

    def refused(self, requests: Iterable[Request]) -> dict[str, str]:
        """Adapter id → why it cannot be served, of those that the requests name; each is looked at once."""
        if self.pool is None:
            return {}
        asked = dict.fromkeys(request.adapter_id for request in requests)
        named = [adapter_id for adapter_id in asked if adapter_id is not None]
        for adapter_id in named:
            if adapter_id not in self._reasons:
                self._reasons[adapter_id] = self._why_not(adapter_id)
        return {adapter_id: reason for adapter_id in named if (reason := self._reasons[adapter_id])}

    def begin(self, requests: Iterable[Request]) -> None:
        """Attach the pool, which another engine's may have replaced, and forget what is on the host.

        Raises ValueError naming the adapters of these requests that cannot be served.
        """
        refused = self.refused(requests)
        if refused:
            raise ValueError("; ".join(refused.values()))
        if self._stream is not None:
            self._stream.synchronize()
        if self.pool is not None:
            for projection, lora in zip(self.pool.layout.projections, self._layers, strict=True):
                projection.linear.lora = lora
        self._on_host.clear()
        self._on_the_way.clear()

    def bring(self, batch: Batch, first_slot: int = 0) -> Waited | None:
        """Start the loads that the batch needs, and let the device wait for them; None if it needs none.

        `first_slot` is added to the batch's slots.
        """
        loads = {slot + first_slot: adapter_id for slot, adapter_id in batch.adapter_loads.items()}
        if not loads and not self._on_the_way:
            return None
        started = time.perf_counter()
        if self._stream is None:  # nothing happens beside the step
            self._put(loads)
            return Waited(set(loads), time.perf_counter() - started)
        for slot in self._overwritten(batch):
            torch.cuda.current_stream().wait_event(self._on_the_way.pop(slot))
        used = {sequence.adapter_slot + first_slot for sequence in batch.sequences if sequence.adapter_slot}
        waited = used & (loads.keys() | self._on_the_way.keys())
        self._ahead = {slot: adapter_id for slot, adapter_id in loads.items() if slot not in used}
        self._steps_before = record_event()
        if not waited:
            return None
        needed = {slot: adapter_id for slot, adapter_id in loads.items() if slot in used}
        for adapter_id in needed.values():
            self._from_host(adapter_id)
        host = time.perf_counter() - started
        start = record_event()
        for slot in waited & self._on_the_way.keys():
            torch.cuda.current_stream().wait_event(self._on_the_way.pop(slot))
        self._put(needed)
        return Waited(waited, host, (start, record_event()))

    def _overwritten(self, batch: Batch) -> set[int]:
        """Slots on their way whose blocks are written: the adapter was evicted before it was there."""
        if not self.blocks_per_adapter:
            return set()
        self._on_the_way = {slot: event for slot, event in self._on_the_way.items() if not event.query()}
        if not self._on_the_way:
            return set()
        size, written = self.block_size, {block for _, block in batch.swap_in}
        for sequence, start, num_tokens in zip(batch.sequences, batch.starts, batch.num_tokens, strict=True):
            written.update(sequence.block_table[start // size : (start + num_tokens - 1) // size + 1])
        return {block // self.blocks_per_adapter + 1 for block in written} & self._on_the_way.keys()

    def prefetch(self) -> None:
        """Start the loads for later steps, once the step of the last `bring` is launched: they go beside it."""
        loads, self._ahead = self._ahead, {}
        if loads:
            assert self._stream is not None
            self._stream.wait_event(self._steps_before)  # they may still read what was in the slots
            with torch.cuda.stream(self._stream):
                self._put(loads)
                self._on_the_way |= dict.fromkeys(loads, record_event())

    def finish(self) -> None:
        """Wait for all copies beside the step."""
        if self._on_the_way:
            assert self._stream is not None
            self._stream.synchronize()
            self._on_the_way.clear()

    def tables(self, slots: IntArray, sampled_slots: IntArray) -> dict[str, IntArray]:
        """What goes to the device for rows whose adapters are in `slots` (0: none), by name.

        `sampled_slots` are those of the rows that the vocabulary head sees.
        """
        if self.pool is None:
            return {}
        tables = {"adapters": self.pool.step_tables(slots)}
        return tables | ({"head_adapters": self.pool.step_tables(sampled_slots)} if self.pool.has_head else {})

    def set_step(self, sent: dict[str, Tensor], arrays: dict[str, IntArray]) -> None:
        """The arrays of `tables` are on the device, flat."""
        self._sent, self._arrays = sent, arrays
        if self.pool is not None:
            self._set("adapters")

    def set_head_step(self) -> None:
        """From here on the rows are those of the vocabulary head."""
        if self.pool is not None and self.pool.has_head:
            self._set("head_adapters")

    def _set(self, name: str) -> None:
        assert self.pool is not None
        on_host = self._arrays[name]
        self.pool.set_step(self._sent[name].view(on_host.shape), on_host)

    def _why_not(self, adapter_id: str) -> str:
        assert self.pool is not None
        try:
            self.pool.check(adapter_id)
        except ValueError as error:
            return str(error)
        return ""

    def _put(self, loads: dict[int, str]) -> None:
        assert self.pool is not None
        for slot, adapter_id in loads.items():
            self.pool.put(slot, self._from_host(adapter_id))

    def _from_host(self, adapter_id: str) -> Tensor:
        """The adapter in host memory, read from disk if this is its first use."""
        assert self.pool is not None
        if adapter_id not in self._on_host:
            self._on_host[adapter_id] = self.pool.load(adapter_id)
        return self._on_host[adapter_id]
