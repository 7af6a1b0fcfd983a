"""The KV cache's size and its tensors, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from framework.engine.torch_engine.options import EngineOptions
from framework.kernels.layer_cache import SCALE_DTYPE, LayerCache
from framework.models.config import ModelConfig
from framework.models.footprint import footprint
from framework.models.gpt2 import GPT2
from framework.models.layers import PagedAttention
from framework.models.llama import Llama

CPU_CACHE_BYTES = 512 * 2**20
CUDA_CACHE_SHARE = 0.9  # of the memory that is free once the weights are loaded and the headroom is set aside
CUDA_HEADROOM_BYTES = 2 * 2**30  # activations, gathered keys and values, and logits of one step


def bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of `block_size` tokens in all layers, and of their scales if `dtype` is int8."""
    head_bytes = config.head_dim * dtype.itemsize + (SCALE_DTYPE.itemsize if dtype == torch.int8 else 0)
    return 2 * config.num_layers * config.num_kv_heads * head_bytes * block_size


def default_cache_bytes(device: torch.device) -> int:
    """512 MiB on a CPU; on a GPU 90% of the memory now free after a headroom of 2 GiB."""
    if device.type != "cuda":
        return CPU_CACHE_BYTES
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return int(CUDA_CACHE_SHARE * (free_bytes - CUDA_HEADROOM_BYTES))


@dataclass(frozen=True, slots=True)
class CacheSize:
    num_blocks: int
    num_bytes: int  # of all layers' keys, values and scales; 0 if none are kept


def size_cache(
    model: Llama | GPT2,
    options: EngineOptions,
    adapter_bytes: int,
    *,
    num_blocks: int | None,
    kv_cache_bytes: int | None,
    memory_bytes: int | None,
    max_num_blocks: int | None,
) -> CacheSize:
    """The cache of `num_blocks` blocks, or of the most that its share of the memory holds.

    That is `kv_cache_bytes` less the `adapter_bytes` that slots have taken already; or what `memory_bytes` leave beside
    the weights, less the same; or the default of the device, and then at most `max_num_blocks`. Raises ValueError if
    more than one of the first three is given, or if not even one block fits.
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
    if num_blocks is None:
        num_blocks = _blocks_that_fit(model.norm.weight.device, block_bytes, options, kv_cache_bytes, adapter_bytes)
        if kv_cache_bytes is None and max_num_blocks is not None:
            num_blocks = min(num_blocks, max_num_blocks)
    if num_blocks < 1:
        raise ValueError(f"num_blocks {num_blocks} must be at least 1")
    return CacheSize(num_blocks, num_blocks * block_bytes if options.use_cache else 0)


def bytes_beside_weights(model: Llama | GPT2, memory_bytes: int) -> int:
    """What of `memory_bytes` is left once the model has what its storages take; ValueError if that is nothing."""
    weight_bytes = footprint(model)["total"]
    if weight_bytes >= memory_bytes:
        raise ValueError(
            f"the weights take {weight_bytes:,} bytes; engine.memory_bytes is {memory_bytes:,} for them and the KV "
            "cache: raise it, or quantize the weights"
        )
    return memory_bytes - weight_bytes


def _blocks_that_fit(
    device: torch.device, block_bytes: int, options: EngineOptions, kv_cache_bytes: int | None, adapter_bytes: int
) -> int:
    cache_bytes = default_cache_bytes(device) if kv_cache_bytes is None else kv_cache_bytes
    if kv_cache_bytes is not None or device.type != "cuda":  # what is free on a GPU is so beside the slots
        cache_bytes -= adapter_bytes
    if cache_bytes < block_bytes:
        adapters = f" (adapter slots take {adapter_bytes / 2**20:.1f} MiB)" if adapter_bytes else ""
        memory = f"free memory on {device}" if kv_cache_bytes is None else "raise engine.kv_cache_bytes or memory_bytes"
        raise ValueError(
            f"a KV cache of {cache_bytes / 2**20:.1f} MiB holds no block of {block_bytes / 2**20:.1f} MiB "
            f"({options.block_size} tokens){adapters}; {memory}, or use a smaller model or block_size"
        )
    return cache_bytes // block_bytes


def attention_modules(model: Llama | GPT2) -> list[PagedAttention]:
    """The modules that hold the caches, layer by layer."""
    return [module for module in model.modules() if isinstance(module, PagedAttention)]


def allocate_cache(config: ModelConfig, num_slots: int, dtype: torch.dtype, device: torch.device) -> list[LayerCache]:
    """One LayerCache per layer; ValueError with the numbers if the device has no room for them."""
    try:
        return [_allocate_layer(config, num_slots, dtype, device) for _ in range(config.num_layers)]
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


def _allocate_layer(config: ModelConfig, num_slots: int, dtype: torch.dtype, device: torch.device) -> LayerCache:
    k, v = (torch.zeros(num_slots, config.num_kv_heads, config.head_dim, dtype=dtype, device=device) for _ in range(2))
    if dtype != torch.int8:
        return LayerCache(k, v)
    return LayerCache(k, v, torch.zeros(2, config.num_kv_heads, num_slots, dtype=SCALE_DTYPE, device=device))


def attach_cache(model: Llama | GPT2, caches: list[LayerCache]) -> None:
    """Give each layer its cache; an empty list takes away what the layers have."""
    for index, module in enumerate(attention_modules(model)):
        module.cache = caches[index] if caches else None
