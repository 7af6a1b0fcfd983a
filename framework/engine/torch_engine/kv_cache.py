"""The KV cache's size and its tensors, layer by layer."""

from __future__ import annotations

import torch

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


def bytes_beside_weights(
    model: Llama | GPT2, memory_bytes: int, num_blocks: int | None, kv_cache_bytes: int | None
) -> int:
    """What of `memory_bytes` is left for the KV cache once the model has what its storages take, tables included.

    Raises ValueError if nothing is left, or if the cache's size is given in another way too.
    """
    if num_blocks is not None or kv_cache_bytes is not None:
        raise ValueError(
            f"engine.memory_bytes={memory_bytes} sets the cache's size: leave num_blocks ({num_blocks}) and "
            f"kv_cache_bytes ({kv_cache_bytes}) null"
        )
    weight_bytes = footprint(model)["total"]
    if weight_bytes >= memory_bytes:
        raise ValueError(
            f"the weights take {weight_bytes:,} bytes; engine.memory_bytes is {memory_bytes:,} for them and the KV "
            "cache: raise it, or quantize the weights"
        )
    return memory_bytes - weight_bytes


def count_blocks(
    config: ModelConfig,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    num_blocks: int | None,
    kv_cache_bytes: int | None,
    adapter_bytes: int = 0,
) -> int:
    """The number of blocks: as given, what `kv_cache_bytes` hold, or what the device's default size holds.

    Adapter slots of `adapter_bytes` are there already and share that memory; only a given number of blocks has its own.
    Raises ValueError if both are given, or if not even one block fits.
    """
    if num_blocks is not None and kv_cache_bytes is not None:
        raise ValueError(f"give num_blocks ({num_blocks}) or kv_cache_bytes ({kv_cache_bytes}), not both")
    if kv_cache_bytes is not None and kv_cache_bytes < 1:
        raise ValueError(f"engine.kv_cache_bytes {kv_cache_bytes} must be at least 1")
    if num_blocks is None:
        cache_bytes = default_cache_bytes(device) if kv_cache_bytes is None else kv_cache_bytes
        if kv_cache_bytes is not None or device.type != "cuda":  # what is free on a GPU is so beside the slots
            cache_bytes -= adapter_bytes
        block_bytes = bytes_per_block(config, block_size, dtype)
        num_blocks = cache_bytes // block_bytes
        if num_blocks < 1:
            adapters = f" (adapter slots take {adapter_bytes / 2**20:.1f} MiB)" if adapter_bytes else ""
            memory = (
                f"free memory on {device}" if kv_cache_bytes is None else "raise engine.kv_cache_bytes or memory_bytes"
            )
            raise ValueError(
                f"a KV cache of {cache_bytes / 2**20:.1f} MiB holds no block of {block_bytes / 2**20:.1f} MiB "
                f"({block_size} tokens){adapters}; {memory}, or use a smaller model or block_size"
            )
    if num_blocks < 1:
        raise ValueError(f"num_blocks {num_blocks} must be at least 1")
    return num_blocks


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
