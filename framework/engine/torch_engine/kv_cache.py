"""The KV cache's size and its tensors, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from framework.engine.torch_engine.adapter_memory import AdapterMemory, round_up
from framework.engine.torch_engine.key_bias import key_offsets
from framework.engine.torch_engine.options import EngineOptions
from framework.engine.torch_engine.sampling import Sampling
from framework.engine.torch_engine.step_memory import MOST_ROWS, MOST_SEQS, needed_bytes
from framework.kernels.layer_cache import SCALE_DTYPE, LayerCache
from framework.lora.pool import attach_pool
from framework.models.config import ModelConfig
from framework.models.footprint import footprint
from framework.models.gpt2 import GPT2
from framework.models.layers import PagedAttention
from framework.models.llama import Llama

CPU_CACHE_BYTES = 512 * 2**20
CUDA_CACHE_SHARE = 0.9  # of the memory that is free beside the weights, what steps need, and the headroom
CUDA_HEADROOM_BYTES = 2 * 2**30  # keys and values that plain attention gathers, adapters' copies, libraries' own memory


def bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of `block_size` tokens in all layers, and of their scales if `dtype` is int8."""
    head_bytes = config.head_dim * dtype.itemsize + (SCALE_DTYPE.itemsize if dtype == torch.int8 else 0)
    return 2 * config.num_layers * config.num_kv_heads * head_bytes * block_size


def free_bytes_of(device: torch.device) -> int | None:
    """What is free on a GPU now, with what PyTorch keeps for later; None on a CPU, whose memory is not looked at."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def automatic_cache_bytes(free_bytes: int | None, needed_bytes: int) -> int:
    """512 MiB on a CPU; on a GPU 90% of what is free beside the `needed_bytes` of steps and a headroom of 2 GiB."""
    if free_bytes is None:
        return CPU_CACHE_BYTES
    return max(0, int(CUDA_CACHE_SHARE * (free_bytes - needed_bytes - CUDA_HEADROOM_BYTES)))


@dataclass(frozen=True, slots=True)
class CacheSize:
    num_blocks: int
    num_bytes: int  # of all layers' keys, values and scales; 0 if none are kept
    free_bytes: int | None  # of a GPU, before there was a cache


def size_cache(
    model: Llama | GPT2,
    options: EngineOptions,
    sampling: Sampling,
    memory: AdapterMemory,
    *,
    num_blocks: int | None,
    kv_cache_bytes: int | None,
    memory_bytes: int | None,
    max_num_blocks: int | None,
) -> CacheSize:
    """The cache of `num_blocks` blocks, or of the most that its share of the memory holds.

    That is `kv_cache_bytes` less what adapters take beside the cache; or what `memory_bytes` leave beside the
    weights, less the same; or the default of the device, and then at most `max_num_blocks` and what adapters may take
    of these. Raises ValueError if more than one of the first three is given, or if not even one block fits, or one
    adapter that is to be in the cache.
    """
    if memory_bytes is not None:
        if num_blocks is not None or kv_cache_bytes is not None:
            raise ValueError(
                f"engine.memory_bytes={memory_bytes} sets the cache's size: leave num_blocks ({num_blocks}) and "
                f"kv_cache_bytes ({kv_cache_bytes}) null"
            )
        kv_cache_bytes = bytes_beside_weights(model, memory_bytes)
    if num_blocks is not None and kv_cache_bytes is not None:
        raise ValueError(f"give num_blocks ({num_blocks}) or kv_cache_bytes ({kv_cache_bytes}), not both")
    if kv_cache_bytes is not None and kv_cache_bytes < 1:
        raise ValueError(f"engine.kv_cache_bytes {kv_cache_bytes} must be at least 1")
    block_bytes = bytes_per_block(model.config, options.block_size, options.kv_dtype)
    free_bytes = free_bytes_of(model.norm.weight.device)
    if num_blocks is None and kv_cache_bytes is None:
        num_blocks = _automatic_blocks(model, options, sampling, memory, free_bytes)
        num_blocks = num_blocks if max_num_blocks is None else min(num_blocks, max_num_blocks + memory.most_blocks)
    elif num_blocks is None:
        assert kv_cache_bytes is not None
        num_blocks = _blocks_of_budget(kv_cache_bytes, memory_bytes, block_bytes, options.block_size, memory.num_bytes)
    if num_blocks < 1:
        raise ValueError(f"num_blocks {num_blocks} must be at least 1")
    memory.check(num_blocks)
    return CacheSize(num_blocks, num_blocks * block_bytes if options.use_cache else 0, free_bytes)


def bytes_beside_weights(model: Llama | GPT2, memory_bytes: int) -> int:
    """What of `memory_bytes` is left once the model has what its storages take; ValueError if that is nothing."""
    weight_bytes = footprint(model)["total"]
    if weight_bytes >= memory_bytes:
        raise ValueError(
            f"the weights take {weight_bytes:,} bytes; engine.memory_bytes is {memory_bytes:,} for them and the KV "
            f"cache: raise it above {weight_bytes}, or quantize the weights"
        )
    return memory_bytes - weight_bytes


def _automatic_blocks(
    model: Llama | GPT2, options: EngineOptions, sampling: Sampling, memory: AdapterMemory, free_bytes: int | None
) -> int:
    """Of what the device has free; on a GPU that is so beside adapter slots that have their memory already."""
    block_bytes = bytes_per_block(model.config, options.block_size, options.kv_dtype)
    needed = 0 if free_bytes is None else needed_bytes(model, options, sampling)
    adapter_bytes, is_beside = memory.num_bytes, free_bytes is not None and memory.is_allocated
    cache_bytes = automatic_cache_bytes(free_bytes, needed) - (0 if is_beside else adapter_bytes)
    if cache_bytes >= block_bytes:
        return cache_bytes // block_bytes
    if free_bytes is None:
        return _blocks_of_budget(CPU_CACHE_BYTES, None, block_bytes, options.block_size, adapter_bytes)
    least = adapter_bytes + block_bytes
    raise ValueError(
        f"{free_bytes / 2**30:.1f} GiB are free beside the weights; steps of {MOST_ROWS:,} tokens and {MOST_SEQS} "
        f"sequences take {needed / 2**30:.1f} GiB of them, {CUDA_HEADROOM_BYTES / 2**30:.1f} are kept free, and no "
        f"block of {block_bytes:,} bytes is left: for smaller steps set engine.kv_cache_bytes to {least} or more"
    )


def _blocks_of_budget(
    kv_cache_bytes: int, memory_bytes: int | None, block_bytes: int, block_size: int, adapter_bytes: int
) -> int:
    """ValueError with the least that the budget's key must be if no block fits."""
    cache_bytes = kv_cache_bytes - adapter_bytes
    if cache_bytes < block_bytes:
        adapters = f" (adapter slots take {adapter_bytes / 2**20:.1f} MiB)" if adapter_bytes else ""
        least = adapter_bytes + block_bytes
        key = f"kv_cache_bytes to {least}"
        if memory_bytes is not None:
            key = f"memory_bytes to {memory_bytes - kv_cache_bytes + least}"
        raise ValueError(
            f"a KV cache of {cache_bytes / 2**20:.1f} MiB holds no block of {block_bytes / 2**20:.1f} MiB "
            f"({block_size} tokens){adapters}; raise engine.{key} at least, or use a smaller model or block_size"
        )
    return cache_bytes // block_bytes


def too_little_memory(
    model: Llama | GPT2,
    options: EngineOptions,
    sampling: Sampling,
    size: CacheSize,
    adapter_bytes: int,
    num_rows: int,
    num_seqs: int,
) -> ValueError:
    """For a step of so many tokens and sequences that found no memory on a GPU beside a cache of this size."""
    needed, device = needed_bytes(model, options, sampling, num_rows, num_seqs), model.norm.weight.device
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    block_bytes = bytes_per_block(model.config, options.block_size, options.kv_dtype)
    cache_bytes = min(automatic_cache_bytes(size.free_bytes, needed), int(CUDA_CACHE_SHARE * size.num_bytes))
    advice = "lower the scheduler's max_num_batched_tokens or max_num_seqs"
    if cache_bytes >= block_bytes:
        now = size.num_bytes + adapter_bytes
        advice = f"set engine.kv_cache_bytes={cache_bytes + adapter_bytes} (it is {now} now), or {advice}"
    return ValueError(
        f"no memory is left for a step of {num_rows:,} tokens and {num_seqs} sequences: it takes up to "
        f"{needed / 2**30:.2f} GiB beside the weights and the KV cache, and {free_bytes / 2**30:.2f} of "
        f"{total_bytes / 2**30:.2f} GiB are free on {device}; {advice}"
    )


def attention_modules(model: Llama | GPT2) -> list[PagedAttention]:
    """The modules that hold the caches, layer by layer."""
    return [module for module in model.modules() if isinstance(module, PagedAttention)]


def allocate_shared(
    model: Llama | GPT2, num_blocks: int, options: EngineOptions, memory: AdapterMemory
) -> list[LayerCache]:
    """A cache of `num_blocks` blocks in which the model's adapters are, as allocate_cache returns it."""
    pool, ranges, block_size = memory.pool, memory.ranges, options.block_size
    assert pool is not None
    assert ranges is not None
    num_all = round_up(ranges.num_blocks + num_blocks, ranges.aligned_blocks)
    first, num_slots = ranges.num_blocks * block_size, num_blocks * block_size
    storage = allocate_lanes(model, num_all * block_size, options.kv_dtype)
    numbers = storage.flatten(1).view(pool.slab.dtype)  # (num_lanes, those of a lane)
    shape = (
        ranges.lanes.num_lanes,
        1 + min(pool.max_slots, num_blocks // ranges.num_blocks),
        pool.max_rank,
        ranges.lanes.width,
    )
    stride = ranges.num_blocks * ranges.lane_bytes // numbers.itemsize
    slab = numbers.as_strided(shape, (numbers.stride(0), stride, ranges.lanes.width, 1))
    attach_pool(pool.within(slab, ranges.lanes))
    return allocate_cache(model, num_slots, options.kv_dtype, storage[:, first : first + num_slots])


def allocate_lanes(model: Llama | GPT2, num_slots: int, dtype: torch.dtype) -> Tensor:
    """Zeros (2 * layers, num_slots, num_kv_heads, head_dim); ValueError if the device has no room for them."""
    config, device = model.config, model.norm.weight.device
    shape = (2 * config.num_layers, num_slots, config.num_kv_heads, config.head_dim)
    with _refusing(config, num_slots, dtype, device):
        return torch.zeros(shape, dtype=dtype, device=device)


def allocate_cache(
    model: Llama | GPT2, num_slots: int, dtype: torch.dtype, lanes: Tensor | None = None
) -> list[LayerCache]:
    """One LayerCache per layer; ValueError with the numbers if the device has no room for them.

    Keys and values are in `lanes` (2 * layers, num_slots, num_kv_heads, head_dim), if there are any: those of a layer
    are neighbours.
    """
    config, device = model.config, model.norm.weight.device
    offsets = key_offsets(model) if dtype == torch.int8 else [None] * config.num_layers
    with _refusing(config, num_slots, dtype, device):
        return [
            _allocate_layer(config, num_slots, dtype, device, offset, None if lanes is None else lanes[2 * layer :])
            for layer, offset in enumerate(offsets)
        ]


@contextmanager
def _refusing(config: ModelConfig, num_slots: int, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """ValueError with the numbers if the device has no room for what is allocated inside."""
    try:
        yield
    except torch.OutOfMemoryError as error:  # of a GPU
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        raise ValueError(
            f"a KV cache of {bytes_per_block(config, num_slots, dtype) / 2**30:.1f} GiB ({num_slots} tokens) does not "
            f"fit: {device} has {total_bytes / 2**30:.1f} GiB, of which the weights left too little and "
            f"{free_bytes / 2**30:.1f} GiB are free now; lower engine.num_blocks or engine.kv_cache_bytes"
        ) from error
    except RuntimeError as error:
        if device.type != "cpu":
            raise
        raise ValueError(
            f"a KV cache of {bytes_per_block(config, num_slots, dtype) / 2**30:.1f} GiB ({num_slots} tokens) cannot be "
            f"allocated on {device}; lower engine.num_blocks or engine.kv_cache_bytes"
        ) from error


def _allocate_layer(
    config: ModelConfig,
    num_slots: int,
    dtype: torch.dtype,
    device: torch.device,
    key_offset: Tensor | None,
    lanes: Tensor | None,
) -> LayerCache:
    shape = (num_slots, config.num_kv_heads, config.head_dim)
    k, v = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)] if lanes is None else lanes[:2].unbind()
    if dtype != torch.int8:
        return LayerCache(k, v)
    scales = torch.zeros(2, config.num_kv_heads, num_slots, dtype=SCALE_DTYPE, device=device)
    return LayerCache(k, v, scales, key_offset)


def attach_cache(model: Llama | GPT2, caches: list[LayerCache]) -> None:
    """Give each layer its cache; an empty list takes away what the layers have."""
    for index, module in enumerate(attention_modules(model)):
        module.cache = caches[index] if caches else None
