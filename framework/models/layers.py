"""A linear layer with what surrounds it: the norm before, the activation and the residual addition after; embeddings.

Few rows on a GPU take one fused kernel; everything else is plain PyTorch, which torch.compile fuses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from framework.kernels.attention import Attention
from framework.kernels.layer_cache import LayerCache
from framework.kernels.linear import (
    Surroundings,
    fused_linear,
    fused_norm,
    in_place_linear,
    plain_linear,
    plain_norm,
)
from framework.models.config import ModelConfig

Norm = nn.RMSNorm | nn.LayerNorm


class SurroundedLinear(nn.Module):
    """What linear layers share, however they keep their weights; `compute` is each one's own.

    Calls of up to `max_fused_rows` rows take a fused kernel: none do until an engine sets it, at most to `fused_rows`
    or in the vocabulary head to `fused_head_rows`, up to which that kernel is the fastest in half precision. `lora`
    gives what adapters add to the product: (rows, in_features), normed → (rows, out_features of the weight).
    """

    in_features: int
    out_features: int
    weight: Tensor
    fused_rows = 0
    fused_head_rows = 0
    max_fused_rows = 0
    lora: Callable[[Tensor], Tensor] | None = None

    def forward(
        self, x: Tensor, *, norm: Norm | None = None, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """residual + activation(norm(x) @ weight.T + bias + lora(norm(x))), each part where it is given.

        x is (rows, in_features); where there are adapters both products share one norm, in a launch of its own.
        `silu_gate` halves the columns: silu of the first half times the second. `gelu` is the tanh approximation.
        """
        is_fused = 0 < x.shape[0] <= self.max_fused_rows
        norm_weight = None if norm is None else norm.weight
        norm_bias = norm.bias if isinstance(norm, nn.LayerNorm) else None
        norm_eps = 0.0 if norm is None or norm.eps is None else norm.eps
        delta = None
        if self.lora is not None:
            if norm_weight is not None:
                x = (fused_norm if is_fused else plain_norm)(x, norm_weight, norm_bias, norm_eps)
                norm_weight = norm_bias = None
            delta = self.lora(x)
        around = Surroundings(norm_weight, norm_bias, norm_eps, delta, activation, residual)
        return self.compute(x, is_fused, around)

    def compute(self, x: Tensor, is_fused: bool, around: Surroundings) -> Tensor:
        raise NotImplementedError


class Linear(SurroundedLinear, nn.Linear):
    """With weights in floating point."""

    fused_rows = 64  # beyond, cuBLAS with compiled surroundings is faster (H200, bfloat16)
    fused_head_rows = 128

    def compute(self, x: Tensor, is_fused: bool, around: Surroundings) -> Tensor:
        linear = fused_linear if is_fused else in_place_linear if torch.compiler.is_compiling() else plain_linear
        return linear(x, self.weight, self.bias, around)


class TokenEmbedding(nn.Embedding):
    """The rows of a table; `lora` gives what adapters add to them: (rows,) token ids → (rows, embedding_dim)."""

    lora: Callable[[Tensor], Tensor] | None = None

    @property
    def in_features(self) -> int:
        return self.num_embeddings

    @property
    def out_features(self) -> int:
        return self.embedding_dim

    def forward(self, input: Tensor) -> Tensor:
        """(rows,) → (rows, embedding_dim)."""
        rows = super().forward(input)
        return rows if self.lora is None else rows + self.lora(input)


class PagedAttention(nn.Module):
    """Holds the `cache` of one layer; None: no cache is kept. A query sees the last `window` tokens; None: all."""

    cache: LayerCache | None

    def __init__(self, config: ModelConfig, window: int | None = None) -> None:
        super().__init__()
        self.window = window
        self.num_kv_heads, self.head_dim, self.norm_eps = config.num_kv_heads, config.head_dim, config.norm_eps
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.cache = None

    def forward(self, qkv: Tensor, rope: Tensor | None, attention: Attention) -> Tensor:
        """(num_tokens, (num_heads + 2 num_kv_heads) * head_dim) → (num_tokens, num_heads * head_dim)."""
        return attention(
            qkv.unflatten(-1, (-1, self.head_dim)),
            rope,
            self.cache,
            self.window,
            num_kv_heads=self.num_kv_heads,
            q_norm=None if self.q_norm is None else self.q_norm.weight,
            k_norm=None if self.k_norm is None else self.k_norm.weight,
            norm_eps=self.norm_eps,
        )
