"""What a step must do at least: bytes to move and operations to compute, from the model's shape and the batch alone.

No step is faster than the longer of bytes / bandwidth and operations / rate (roofline: Williams et al., CACM 2009).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from framework.core import Batch
from framework.engine.torch_engine.kv_cache import bytes_per_block
from framework.models.footprint import plain_tensors
from framework.models.gpt2 import GPT2
from framework.models.layers import SurroundedLinear
from framework.models.llama import Llama


@dataclass(frozen=True, slots=True)
class Work:
    """`num_bytes` to read or write, `num_flops` multiplications and additions."""

    num_bytes: float
    num_flops: float

    def floor(self, bandwidth: float, rate: float) -> float:
        """Seconds at `bandwidth` bytes/s and `rate` FLOP/s."""
        return max(self.num_bytes / bandwidth, self.num_flops / rate)

    def is_bandwidth_bound(self, bandwidth: float, rate: float) -> bool:
        return self.num_bytes / bandwidth >= self.num_flops / rate


@dataclass(frozen=True, slots=True)
class Costs:
    """What the parts of a model cost, in bytes and parameters."""

    weight_bytes: int  # read in every step, whatever its size: all but the embedding tables; a tied one is the head
    embedding_bytes: int  # read per token
    kv_bytes: int  # per token of context, over all layers
    layer_parameters: int  # of all layers' matrices: each multiplies and adds once per token
    head_parameters: int  # each once per sampled token
    score_flops: int  # per query and key it attends to: q·k and p·v over all heads and layers
    windows: tuple[tuple[int | None, float], ...] = ((None, 1.0),)  # sliding windows, and the share of layers with each


def model_costs(model: Llama | GPT2, kv_dtype: torch.dtype) -> Costs:
    config = model.config
    tables = [table for table in model.children() if isinstance(table, nn.Embedding)]
    read = {parameter for part in (model.layers, model.norm, model.lm_head) for parameter in part.parameters()}
    linears = [module for module in model.layers.modules() if isinstance(module, SurroundedLinear)]
    return Costs(
        weight_bytes=num_bytes(read),
        embedding_bytes=sum(num_bytes(table.parameters()) // table.num_embeddings for table in tables),
        kv_bytes=bytes_per_block(config, 1, kv_dtype),
        layer_parameters=sum(linear.in_features * linear.out_features for linear in linears),
        head_parameters=model.lm_head.in_features * model.lm_head.out_features,
        score_flops=4 * config.num_heads * config.head_dim * config.num_layers,
        windows=tuple((window, num / config.num_layers) for window, num in Counter(config.layer_windows).items()),
    )


def num_bytes(parameters: Iterable[Tensor]) -> int:
    return sum(part.nbytes for parameter in parameters for part in plain_tensors(parameter))


def step_work(costs: Costs, batch: Batch, num_sampled: int | None = None) -> Work:
    """Work of a step in which `num_sampled` sequences sample one token (None: all; a prompt's chunk may not).

    Keys and values of a context are moved once: those of old tokens are read, those of new ones written. A new token
    attends to the tokens before it and to itself.
    """
    spans = list(zip(batch.starts, batch.num_tokens, strict=True))
    num_new = sum(num for _, num in spans)
    num_scores = sum(share * scores(start, num, window) for start, num in spans for window, share in costs.windows)
    num_context = sum(share * slots(start, num, window) for start, num in spans for window, share in costs.windows)
    return Work(
        num_bytes=costs.weight_bytes + num_new * costs.embedding_bytes + num_context * costs.kv_bytes,
        num_flops=2 * costs.layer_parameters * num_new
        + 2 * costs.head_parameters * (len(spans) if num_sampled is None else num_sampled)
        + costs.score_flops * num_scores,
    )


def scores(start: int, num: int, window: int | None) -> int:
    """Queries and keys that meet where `num` new tokens follow `start` others, each sees itself and those before it."""
    num_whole = num if window is None else min(max(window - start, 0), num)  # tokens that see all before them
    return num_whole * start + num_whole * (num_whole + 1) // 2 + (num - num_whole) * (window or 0)


def slots(start: int, num: int, window: int | None) -> int:
    """Keys that these tokens see together."""
    return start + num if window is None else min(start + num, window + num - 1)


def attention_work(model: Llama | GPT2, num_seqs: int, context: int, kv_dtype: torch.dtype) -> Work:
    """Work of one layer's attention in a decode step: its keys and values, and the scores over them."""
    config = model.config
    num_slots = num_seqs * context
    return Work(
        num_bytes=bytes_per_block(config, num_slots, kv_dtype) / config.num_layers,
        num_flops=4 * config.num_heads * config.head_dim * num_slots,
    )
