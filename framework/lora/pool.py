"""Adapters on the device: a fixed number of slots, and for each step which rows use which slot.

What a step reads is always at the same address, so that a CUDA graph or a compiled block holds whatever is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from framework.checks import whole
from framework.kernels.arrays import IntArray
from framework.lora.adapters import AdapterSource
from framework.lora.layout import HEAD, Layout, Projection, linear_layers, make_layout, outer_layers
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama

MAX_STATIC_ROWS = 2**15  # a step of more rows is neither captured nor compiled (MAX_COMPILED_ROWS)


class Strategy(Protocol):
    """How the adapters' part of a linear layer is computed."""

    is_static: bool  # a CUDA graph or a compiled block may hold it

    def tables(self, slots: IntArray, pool: AdapterPool) -> IntArray:
        """What `delta` needs on the device to know the slot (0: none) of each row: (num_tables, rows)."""

    def delta(self, x: Tensor, lora: LoRA) -> Tensor:
        """(rows, in_features), normed → (rows, out_features)."""


class AdapterPool:
    """`num_slots` adapters of rank up to `max_rank` on the device; slot 0 is none of them, and all zeros.

    `slab` (num_slots + 1, max_rank, width) is laid out by `layout`; beyond an adapter's rank its slot is zero. What it
    takes is subtracted from the KV cache's memory at the start, however few adapters are asked for: a static split,
    other than S-LoRA's unified paging (MLSys 2024).
    """

    def __init__(
        self, layout: Layout, source: AdapterSource, strategy: Strategy, num_slots: int, max_rank: int, like: Tensor
    ) -> None:
        self.layout, self.source, self.strategy = layout, source, strategy
        self.num_slots, self.max_rank = num_slots, max_rank
        self.has_head = any(HEAD in projection.names for projection in layout.projections)
        self.has_lookup = any(projection.is_lookup for projection in layout.projections)
        shape = (num_slots + 1, max_rank, layout.width)
        try:
            self.slab = torch.zeros(shape, dtype=like.dtype, device=like.device)
        except RuntimeError as error:  # of a GPU it is an OutOfMemoryError
            size = (num_slots + 1) * max_rank * layout.width * like.dtype.itemsize
            raise ValueError(
                f"{num_slots} adapter slots of rank {max_rank} take {size / 2**30:.1f} GiB, which {like.device} does "
                "not have beside the model; lower lora.num_slots, lora.max_rank or lora.targets"
            ) from error
        self.ranks = torch.zeros(num_slots + 1, dtype=torch.int32, device=like.device)
        self.num_tables = len(self.step_tables(np.zeros(1, dtype=np.int64)))
        self._static = torch.zeros(self.num_tables, MAX_STATIC_ROWS, dtype=torch.int32, device=like.device)
        self._step = self._static
        self.on_host: list[list[int]] = []  # `tables`, where the host may decide what is launched

    def check(self, adapter_id: str) -> None:
        """ValueError naming the adapter, if it cannot be served."""
        rank = self.source.check(adapter_id, self.layout)
        if rank > self.max_rank:
            raise ValueError(f"adapter {adapter_id!r} has rank {rank}, more than lora.max_rank={self.max_rank}")

    def load(self, adapter_id: str) -> Tensor:
        """The adapter on the host, (rank, width), from where a copy to the device need not wait."""
        rows = self.source.load(adapter_id, self.layout, self.slab.dtype)
        return rows.pin_memory() if self.slab.is_cuda and not rows.is_pinned() else rows

    def put(self, slot: int, rows: Tensor) -> None:
        """Copy an adapter's rows into a slot, on the current stream and without waiting."""
        assert 0 < slot <= self.num_slots, slot
        rank = len(rows)
        self.slab[slot, :rank].copy_(rows, non_blocking=True)
        self.slab[slot, rank:].zero_()
        self.ranks[slot] = rank

    def step_tables(self, slots: IntArray) -> IntArray:
        """What a step whose rows take these slots needs on the device, (num_tables, rows)."""
        tables = self.strategy.tables(slots, self)
        return np.vstack((slots, tables)) if self.has_lookup else tables

    def set_step(self, tables: Tensor, on_host: IntArray | npt.NDArray[np.int32]) -> None:
        """The `step_tables` of the rows that come, on the device and on the host."""
        num_rows = tables.shape[1]
        if num_rows <= MAX_STATIC_ROWS:
            self._static[:, :num_rows].copy_(tables)
            self._step = self._static
        else:
            self._step = tables.int()
        is_on_device = self.strategy.is_static and self.slab.is_cuda
        self.on_host = [] if is_on_device else on_host[int(self.has_lookup) :].tolist()

    @property
    def tables(self) -> Tensor:
        """The strategy's tables (num_tables, rows or more)."""
        return self._step[int(self.has_lookup) :]

    @property
    def slots(self) -> Tensor:
        """Each row's slot (rows or more,), where an embedding needs it."""
        assert self.has_lookup
        return self._step[0]


class LoRA:
    """What one linear layer adds: views of the slots, a (slots, max_rank, parts, in) and b (slots, max_rank, out).

    `sizes` are the output features of each part, which has an A of its own.
    """

    def __init__(self, pool: AdapterPool, projection: Projection) -> None:
        self.a, self.b = projection.factors(pool.slab)
        self.sizes, self.pool = list(projection.sizes), pool

    @cached_property
    def by_part(self) -> list[list[tuple[Tensor, Tensor]]]:
        """Of each part and slot a view of A (in, max_rank), and of B (max_rank, output features of the part)."""
        parts = zip(self.a.unbind(2), self.b.split(self.sizes, dim=2), strict=True)
        return [list(zip(a.transpose(1, 2), b, strict=True)) for a, b in parts]

    def __call__(self, x: Tensor) -> Tensor:
        return self.pool.strategy.delta(x, self)


class EmbeddingLoRA:
    """What an embedding adds: a row's column of A is looked up, and the strategy multiplies it by B."""

    def __init__(self, pool: AdapterPool, projection: Projection) -> None:
        self.inner = LoRA(pool, projection)
        self.table, self.pool = self.inner.a[:, :, 0], pool  # (slots, max_rank, vocab_size)
        identity = torch.eye(pool.max_rank, dtype=self.table.dtype, device=self.table.device)
        self.inner.a = identity.repeat(len(self.table), 1, 1)[:, :, None]

    def __call__(self, token_ids: Tensor) -> Tensor:
        slots = self.pool.slots[: len(token_ids)].long()
        return self.pool.strategy.delta(self.table[slots, :, token_ids], self.inner)


def serve_adapters(
    model: Llama | GPT2,
    *,
    strategy: Callable[[], Strategy],
    adapters: Callable[[], AdapterSource],
    num_slots: int,
    max_rank: int,
    targets: list[str] | None = None,
) -> Llama | GPT2:
    """Give the model's layers room for `num_slots` adapters of rank up to `max_rank`, in place.

    `targets` are the layers that adapters may change, as PEFT's target_modules (None: the blocks' linear ones). Raises
    ValueError for a target that the model does not have, and if there is no room.
    """
    num_slots, max_rank = whole("lora.num_slots", num_slots), whole("lora.max_rank", max_rank)
    layout = make_layout(model, targets)
    pool = AdapterPool(layout, adapters(), strategy(), num_slots, max_rank, like=model.norm.weight)
    for projection in layout.projections:
        projection.linear.lora = (EmbeddingLoRA if projection.is_lookup else LoRA)(pool, projection)
    return model


def pool_of(model: Llama | GPT2) -> AdapterPool | None:
    """The pool of the model's adapters; None where it serves none."""
    layers = [*(linear for linear, _, _ in linear_layers(model)), *outer_layers(model).values()]
    return next((layer.lora.pool for layer in layers if isinstance(layer.lora, LoRA | EmbeddingLoRA)), None)
