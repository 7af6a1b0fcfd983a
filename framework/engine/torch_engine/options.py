"""What an engine is asked for, decided for one model on its device: a null is answered, what cannot be is refused."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from framework.checks import check_threads, whole
from framework.kernels.gpu_attention import is_supported
from framework.models.config import ModelConfig
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama

# Of the blocks' linear layers. With 3 million, measured on an H200, compiled blocks save 14 µs of a decode step of 32
# rows (4%), but make prompts that no graph holds 1.8 times as slow and the start twice as long. The limit is a guess
MIN_COMPILED_WEIGHTS = 50_000_000


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How steps are computed; `TorchEngine` says what each option is."""

    block_size: int
    kv_dtype: torch.dtype
    use_cache: bool
    fused: bool
    compile: bool
    cuda_graphs: bool
    num_steps_ahead: int
    must_overlap: bool  # asked for by name: it gives way to nothing
    must_replay: bool  # likewise, of cuda_graphs
    num_threads: int
    is_on_gpu: bool
    has_decoder: bool  # decode steps may keep the sequences' state on the GPU

    @classmethod
    def resolve(
        cls,
        model: Llama | GPT2,
        has_static_adapters: bool,
        *,
        block_size: int,
        kv_dtype: str | None,
        use_cache: bool,
        fused: bool | None,
        compile: bool | None,
        cuda_graphs: bool | None,
        overlap: bool | None,
        num_threads: int | None,
    ) -> EngineOptions:
        """Every option of an engine for `model`, with the value that its null stands for; ValueError for a bad one."""
        whole("engine.block_size", block_size)
        check_threads("engine.num_threads", num_threads)
        kept = _kv_dtype(kv_dtype, use_cache, model.norm.weight.dtype)
        is_on_gpu = model.norm.weight.device.type == "cuda"
        config = model.config
        has_decoder = is_on_gpu and use_cache and is_supported(config.head_dim, kept)
        no_loop = "and another lora than loop"
        needs_decoder = "needs a GPU, a KV cache, and a head_dim of 16 (not with kv_dtype=int8), 32, 64 or 128"
        return cls(
            block_size=block_size,
            kv_dtype=kept,
            use_cache=use_cache,
            fused=_decide("fused", fused, is_on_gpu, "needs a GPU"),
            compile=_decide(
                "compile",
                compile,
                is_on_gpu and has_static_adapters,
                f"needs a GPU, {no_loop}",
                is_worth_it=num_block_weights(model.config) >= MIN_COMPILED_WEIGHTS,
            ),
            cuda_graphs=_decide(
                "cuda_graphs", cuda_graphs, has_decoder and has_static_adapters, f"{needs_decoder}, {no_loop}"
            ),
            num_steps_ahead=int(_decide("overlap", overlap, has_decoder, needs_decoder)),
            must_overlap=overlap is True,
            must_replay=cuda_graphs is True,
            num_threads=(os.cpu_count() or 1) if num_threads is None else num_threads,
            is_on_gpu=is_on_gpu,
            has_decoder=has_decoder,
        )


def check_swap(num_swap_blocks: int, use_cache: bool) -> None:
    if num_swap_blocks < 0:
        raise ValueError(f"engine.num_swap_blocks must be at least 0, not {num_swap_blocks}")
    if num_swap_blocks and not use_cache:
        raise ValueError(f"engine.num_swap_blocks={num_swap_blocks} needs a KV cache, and use_cache=false keeps none")


def _kv_dtype(name: str | None, use_cache: bool, model_dtype: torch.dtype) -> torch.dtype:
    if name not in (None, "int8"):
        raise ValueError(f"kv_dtype {name!r} must be null or int8")
    if name is not None and not use_cache:
        raise ValueError(f"engine.kv_dtype={name} needs a KV cache, and use_cache=false keeps none")
    return model_dtype if name is None else torch.int8


def num_block_weights(config: ModelConfig) -> int:
    """Weights of the linear layers of all blocks, whatever they are kept as."""
    attention = config.hidden_size * (sum(config.qkv_sizes) + config.num_heads * config.head_dim)
    num_matrices = 2 if config.model_type == "gpt2" else 3  # with a gate
    return config.num_layers * (attention + num_matrices * config.hidden_size * config.intermediate_size)


def _decide(name: str, value: bool | None, is_possible: bool, needs: str, *, is_worth_it: bool = True) -> bool:
    """`value`, or for a null whether it is possible and worth it; ValueError if it asks for what is not possible."""
    if value and not is_possible:
        raise ValueError(f"engine.{name}=true {needs} (null: on wherever it can be)")
    return is_possible and is_worth_it if value is None else value
