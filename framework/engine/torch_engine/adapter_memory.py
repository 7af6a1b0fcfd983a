"""What adapters take of an engine's memory: slots of their own, or ranges of KV blocks (`lora.memory=unified`).

A range has the same blocks in every lane of the cache: in the keys and in the values of each layer. One more range lies
in front of the cache, that of slot 0, which is no adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from framework.engine.torch_engine.options import EngineOptions
from framework.lora.lanes import Lanes, make_lanes
from framework.lora.layout import ALIGNMENT
from framework.lora.pool import AdapterPool, attach_pool, pool_of
from framework.models.config import ModelConfig
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama


@dataclass(frozen=True, slots=True)
class Ranges:
    """A slot is `num_blocks` KV blocks of `lane_bytes` in each of `lanes`.

    Every `aligned_blocks`-th block, and so every slot, begins where a vector load may.
    """

    lanes: Lanes
    num_blocks: int
    lane_bytes: int
    aligned_blocks: int

    @property
    def num_bytes(self) -> int:
        return self.num_blocks * self.lane_bytes * self.lanes.num_lanes


@dataclass(frozen=True, slots=True)
class AdapterMemory:
    """Adapters take `num_bytes` beside the cache: all slots, or slot 0 of `ranges`, which are not allocated yet."""

    pool: AdapterPool | None
    num_bytes: int = 0
    ranges: Ranges | None = None

    @property
    def is_allocated(self) -> bool:
        return self.ranges is None

    @property
    def blocks_per_adapter(self) -> int:
        """Blocks of the cache; 0 if adapters have memory of their own."""
        return 0 if self.ranges is None else self.ranges.num_blocks

    @property
    def most_blocks(self) -> int:
        """Blocks of the cache that all adapters together may take."""
        return 0 if self.pool is None else self.pool.max_slots * self.blocks_per_adapter

    def check(self, num_blocks: int) -> None:
        """ValueError if not even one adapter has room in a cache of so many blocks."""
        if num_blocks < self.blocks_per_adapter:
            assert self.pool is not None
            raise ValueError(
                f"lora.memory=unified: an adapter of rank {self.pool.max_rank} takes {self.blocks_per_adapter} KV "
                f"blocks, and the cache has {num_blocks}: lower lora.max_rank or lora.targets, or give the cache more"
            )


def adapter_memory(model: Llama | GPT2, options: EngineOptions) -> AdapterMemory:
    """For the adapters that the model serves; ValueError if they are to be in a cache that there is not.

    Those of an earlier engine are taken off the model.
    """
    pool = pool_of(model)
    if pool is None or pool.memory == "split":
        return AdapterMemory(pool, 0 if pool is None else pool.slab.nbytes)
    if not options.use_cache:
        raise ValueError("lora.memory=unified keeps adapters in the KV cache, and engine.use_cache=false has none")
    pool = pool.without_memory()
    attach_pool(pool)
    ranges = make_ranges(pool, model.config, options)
    return AdapterMemory(pool, ranges.num_bytes, ranges)


def make_ranges(pool: AdapterPool, config: ModelConfig, options: EngineOptions) -> Ranges:
    lanes, itemsize = make_lanes(pool.layout, 2 * config.num_layers), pool.slab.itemsize
    lane_bytes = options.block_size * config.num_kv_heads * config.head_dim * options.kv_dtype.itemsize
    alignment = ALIGNMENT * itemsize
    aligned_blocks = alignment // gcd(alignment, lane_bytes)
    num_blocks = -(-pool.max_rank * lanes.width * itemsize // lane_bytes)
    return Ranges(lanes, round_up(num_blocks, aligned_blocks), lane_bytes, aligned_blocks)


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is no less than the number."""
    return -(-number // multiple) * multiple
