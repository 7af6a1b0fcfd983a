"""What a step must do at least: bytes to move and operations to compute, from the model's shape and the batch alone.

No step is faster than the longer of bytes / bandwidth and operations / rate (roofline: Williams et al., CACM 2009).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from framework.core import Batch
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama

EMBEDDINGS = ("embed_tokens", "embed_positions")


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


def model_costs(model: Llama | GPT2) -> Costs:
    config = model.config
    parameters = dict(model.named_parameters())  # a tied head is listed once, as the embedding
    tables = {name: table for name, table in parameters.items() if name.startswith(EMBEDDINGS)}
    head = model.lm_head.weight
    read = [parameter for name, parameter in parameters.items() if name not in tables and parameter is not head]
    matrices = [parameter for name, parameter in parameters.items() if "layers." in name and parameter.ndim == 2]
    return Costs(
        weight_bytes=sum(parameter.nbytes for parameter in [*read, head]),
        embedding_bytes=sum(table.shape[1] * table.itemsize for table in tables.values()),
        kv_bytes=2 * config.num_layers * config.num_kv_heads * config.head_dim * head.itemsize,
        layer_parameters=sum(parameter.numel() for parameter in matrices),
        head_parameters=head.numel(),
        score_flops=4 * config.num_heads * config.head_dim * config.num_layers,
    )


def step_work(costs: Costs, batch: Batch) -> Work:
    """Work of a step in which every sequence samples one token.

    Keys and values of a context are moved once: those of old tokens are read, those of new ones written. A new token
    attends to the tokens before it and to itself.
    """
    spans = list(zip(batch.starts, batch.num_tokens, strict=True))
    num_new = sum(num for _, num in spans)
    num_scores = sum(num * start + num * (num + 1) // 2 for start, num in spans)
    num_context = sum(start + num for start, num in spans)
    return Work(
        num_bytes=costs.weight_bytes + num_new * costs.embedding_bytes + num_context * costs.kv_bytes,
        num_flops=2 * costs.layer_parameters * num_new
        + 2 * costs.head_parameters * len(spans)
        + costs.score_flops * num_scores,
    )


def attention_work(model: Llama | GPT2, num_seqs: int, context: int, dtype: torch.dtype) -> Work:
    """Work of one layer's attention in a decode step: its keys and values, and the scores over them."""
    config = model.config
    num_slots = num_seqs * context
    return Work(
        num_bytes=2 * config.num_kv_heads * config.head_dim * dtype.itemsize * num_slots,
        num_flops=4 * config.num_heads * config.head_dim * num_slots,
    )
