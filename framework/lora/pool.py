"""Adapters on the device: slots, in memory of their own or in the KV cache's, and for each step who uses which slot.

What a step reads is always at the same address, so that a CUDA graph or a compiled block holds whatever is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from framework.checks import whole
from framework.kernels.arrays import IntArray
from framework.lora.adapters import AdapterSource
from framework.lora.lanes import Lanes
from framework.lora.layout import HEAD, Layout, Projection, linear_layers, make_layout, outer_layers
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama

MAX_STATIC_ROWS = 2**15  # a step of more rows is neither captured nor compiled (MAX_COMPILED_ROWS)
MAX_STAGED_BYTES = 2**26  # of an adapter on its way to its lanes

Memory = Literal["split", "unified"]


class Strategy(Protocol):
    """How the adapters' part of a linear layer is computed."""

    is_static: bool  # a CUDA graph or a compiled block may hold it

    def tables(self, slots: IntArray, pool: AdapterPool) -> IntArray:
        """What `delta` needs on the device to know the slot (0: none) of each row: (num_tables, rows)."""

    def delta(self, x: Tensor, lora: LoRA) -> Tensor:
        """(rows, in_features), normed → (rows, out_features)."""


class AdapterPool:
    """`num_slots` adapters of rank up to `max_rank` on the device; slot 0 is none of them, and all zeros.

    `slab` (num_slots + 1, max_rank, width) is laid out by `layout`; beyond an adapter's rank its slot is zero. With
    `memory` "split" what it takes is subtracted from the KV cache's memory at the start, however few adapters are asked
    for. With "unified" it lies in the KV cache (S-LoRA, MLSys 2024): it has a dimension more in front, of `lanes`, and
    as many of the `max_slots` slots as the cache has room for; until there is a cache it is nowhere ("meta").
    """

    def __init__(
        self,
        layout: Layout,
        source: AdapterSource,
        strategy: Strategy,
        slab: Tensor,
        memory: Memory = "split",
        max_slots: int | None = None,
        lanes: Lanes | None = None,
    ) -> None:
        self.layout, self.source, self.strategy, self.memory = layout, source, strategy, memory
        self.slab, self.lanes = slab, lanes
        self.num_slots, self.max_rank = slab.shape[-3] - 1, slab.shape[-2]
        self.max_slots = self.num_slots if max_slots is None else max_slots
        self.has_head = any(HEAD in projection.names for projection in layout.projections)
        self.has_lookup = any(projection.is_lookup for projection in layout.projections)
        self.ranks = torch.zeros(self.num_slots + 1, dtype=torch.int32, device=slab.device)
        self.num_tables = len(self.step_tables(np.zeros(1, dtype=np.int64)))
        self._static = torch.zeros(self.num_tables, MAX_STATIC_ROWS, dtype=torch.int32, device=slab.device)
        self._chunks = None if lanes is None else lanes.chunks.to(slab.device)
        self._step = self._static
        self.on_host: list[list[int]] = []  # `tables`, where the host may decide what is launched

    def within(self, slab: Tensor, lanes: Lanes) -> AdapterPool:
        """The same adapters, to be kept in this slab (num_lanes, num_slots + 1, max_rank, lanes.width)."""
        return AdapterPool(self.layout, self.source, self.strategy, slab, self.memory, self.max_slots, lanes)

    def without_memory(self) -> AdapterPool:
        """The same adapters, before there is a cache for them."""
        assert self.memory == "unified"
        slab = empty_slab(self.layout, self.max_slots, self.max_rank, self.slab.dtype, torch.device("meta"))
        return AdapterPool(self.layout, self.source, self.strategy, slab, self.memory)

    def factors(self, projection: Projection) -> tuple[Tensor, Tensor]:
        """Views a (slots, max_rank, parts, in_features) and b (slots, max_rank, out_features)."""
        return projection.factors(self.slab) if self.lanes is None else self.lanes.factors(projection, self.slab)

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
        own = self.slab[..., slot, :, :]  # (…, max_rank, width)
        if self.lanes is None:
            own[:rank].copy_(rows, non_blocking=True)
        else:
            self._spread(rows, own)
        own[..., rank:, :].zero_()
        self.ranks[slot] = rank

    def _spread(self, rows: Tensor, own: Tensor) -> None:
        """Rows (rank, layout.width) to their lanes (num_lanes, max_rank, width), by way of the device."""
        assert self.lanes is not None
        assert self._chunks is not None
        num_rows = max(1, MAX_STAGED_BYTES // (rows.shape[1] * rows.itemsize))
        places = own[:, : len(rows)].split(num_rows, dim=1)
        for some, place in zip(rows.split(num_rows), places, strict=True):
            place.copy_(self.lanes.spread(some.to(own.device, non_blocking=True), self._chunks))

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
        self.a, self.b = pool.factors(projection)
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
    memory: Memory = "split",
    targets: list[str] | None = None,
) -> Llama | GPT2:
    """Give the model's layers room for `num_slots` adapters of rank up to `max_rank`, in place.

    Where `memory` is "unified" an engine gives it them, in its KV cache, and as many slots as that holds. `targets` are
    the layers that adapters may change, as PEFT's target_modules (None: the blocks' linear ones). Raises ValueError for
    a target that the model does not have, and if there is no room.
    """
    num_slots, max_rank = whole("lora.num_slots", num_slots), whole("lora.max_rank", max_rank)
    if memory not in get_args(Memory):
        raise ValueError(f"lora.memory={memory!r} is not one of {', '.join(get_args(Memory))}")
    layout, like = make_layout(model, targets), model.norm.weight
    device = like.device if memory == "split" else torch.device("meta")
    slab = empty_slab(layout, num_slots, max_rank, like.dtype, device)
    attach_pool(AdapterPool(layout, adapters(), strategy(), slab, memory))
    return model


def empty_slab(layout: Layout, num_slots: int, max_rank: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros (num_slots + 1, max_rank, width); ValueError if the device has no room for them."""
    try:
        return torch.zeros(num_slots + 1, max_rank, layout.width, dtype=dtype, device=device)
    except RuntimeError as error:  # of a GPU it is an OutOfMemoryError
        size = (num_slots + 1) * max_rank * layout.width * dtype.itemsize
        raise ValueError(
            f"{num_slots} adapter slots of rank {max_rank} take {size / 2**30:.1f} GiB, which {device} does "
            "not have beside the model; lower lora.num_slots, lora.max_rank or lora.targets"
        ) from error


def attach_pool(pool: AdapterPool) -> None:
    """Let the layers read this pool."""
    for projection in pool.layout.projections:
        projection.linear.lora = (EmbeddingLoRA if projection.is_lookup else LoRA)(pool, projection)


def pool_of(model: Llama | GPT2) -> AdapterPool | None:
    """The pool of the model's adapters; None where it serves none."""
    layers = [*(linear for linear, _, _ in linear_layers(model)), *outer_layers(model).values()]
    return next((layer.lora.pool for layer in layers if isinstance(layer.lora, LoRA | EmbeddingLoRA)), None)
