"""The attention modules' common part: one layer's KV cache, which an engine assigns, and its heads' norms."""

from __future__ import annotations

from torch import Tensor, nn

from framework.kernels.attention import Attention
from framework.kernels.layer_cache import LayerCache
from framework.models.config import ModelConfig


class PagedAttention(nn.Module):
    """Holds the `cache` of one layer; None: no cache is kept."""

    cache: LayerCache | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
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
            num_kv_heads=self.num_kv_heads,
            q_norm=None if self.q_norm is None else self.q_norm.weight,
            k_norm=None if self.k_norm is None else self.k_norm.weight,
            norm_eps=self.norm_eps,
        )
