"""W8A16: int8 weights, symmetric, scaled per output channel or per group of input features; activations are as before.

Scales are float32: as bfloat16 they would save 0.05% of the bytes per channel (1.5% in groups of 128).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from framework.kernels.byte_linear import fused_byte_linear
from framework.kernels.int8 import MAX_FUSED_ROWS, dequantize_int8, plain_int8_linear, quantize_int8
from framework.kernels.linear import Surroundings
from framework.models.gpt2 import GPT2
from framework.models.layers import Linear, SurroundedLinear
from framework.models.llama import Llama
from framework.quantization.replace import check_finite, frozen, replace_linears


class Int8Linear(SurroundedLinear):
    """`weight` (out_features, in_features) int8 and `scale` (out_features, groups) float32 may be shared."""

    fused_rows = fused_head_rows = MAX_FUSED_ROWS

    def __init__(
        self, weight: nn.Parameter, scale: nn.Parameter, bias: nn.Parameter | None, group_size: int | None
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight, self.scale, self.bias, self.group_size = weight, scale, bias, group_size

    def compute(self, x: Tensor, is_fused: bool, around: Surroundings) -> Tensor:
        linear = fused_byte_linear if is_fused else plain_int8_linear
        return linear(x, self.weight, self.scale, self.bias, around, group_size=self.group_size)


class Int8Embedding(nn.Embedding):
    """A table (num_embeddings, embedding_dim) of int8 with scales (num_embeddings, groups), which may be shared."""

    def __init__(self, weight: nn.Parameter, scale: nn.Parameter, group_size: int | None, dtype: torch.dtype) -> None:
        super().__init__(weight.shape[0], weight.shape[1], _weight=weight, _freeze=True)
        self.weight, self.scale, self.group_size, self.dtype = weight, scale, group_size, dtype

    def forward(self, input: Tensor) -> Tensor:
        """(rows,) → (rows, embedding_dim) in the model's dtype."""
        return dequantize_int8(self.weight[input], self.scale[input], self.group_size, self.dtype)


def quantize(
    model: Llama | GPT2, *, group_size: int | None = None, embeddings: bool = False, head: bool = False
) -> Llama | GPT2:
    """Quantize the linear layers of the blocks, the embedding tables and the vocabulary head, as asked; in place.

    `group_size`: input features that share a scale (a power of two of at least 16; None: all). A table that is also
    the head is quantized once for both; if only one of them is asked for, the other keeps the original beside it.
    Raises ValueError for another group_size, and naming the parameter for NaN or infinite weights.
    """
    if group_size is not None and (group_size < 16 or group_size & (group_size - 1)):
        raise ValueError(f"group_size {group_size} must be null or a power of two of at least 16")
    replace_linears(model, lambda linear: quantize_linear(linear, group_size))
    if head:
        check_finite(model.lm_head.weight, "lm_head.weight")
        weight, scale = map(frozen, quantize_int8(model.lm_head.weight, group_size))
        model.lm_head = Int8Linear(weight, scale, None, group_size)
    if embeddings:
        if head and model.config.tie_embeddings:
            model.embed_tokens = Int8Embedding(weight, scale, group_size, model.norm.weight.dtype)
        else:
            model.embed_tokens = quantize_embedding(model.embed_tokens, "embed_tokens", group_size)
        if isinstance(model, GPT2):
            model.embed_positions = quantize_embedding(model.embed_positions, "embed_positions", group_size)
    return model


def quantize_linear(linear: Linear, group_size: int | None) -> Int8Linear:
    weight, scale = map(frozen, quantize_int8(linear.weight, group_size))
    return Int8Linear(weight, scale, linear.bias, group_size)


def quantize_embedding(embedding: nn.Embedding, name: str, group_size: int | None) -> Int8Embedding:
    check_finite(embedding.weight, f"{name}.weight")
    weight, scale = map(frozen, quantize_int8(embedding.weight, group_size))
    return Int8Embedding(weight, scale, group_size, embedding.weight.dtype)
