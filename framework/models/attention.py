"""The attention modules' common part: one layer's KV cache, which an engine assigns, and the call of the kernel."""

from __future__ import annotations

from torch import Tensor, nn

from framework.kernels.attention import AttentionInput, paged_attention


class PagedAttention(nn.Module):
    """Holds `k_cache` and `v_cache` of one layer, (num_slots, num_kv_heads, head_dim); None: no cache is kept."""

    k_cache: Tensor | None
    v_cache: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("k_cache", None, persistent=False)
        self.register_buffer("v_cache", None, persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, attention: AttentionInput) -> Tensor:
        """(num_tokens, num_heads, head_dim), k and v with num_kv_heads → (num_tokens, num_heads * head_dim)."""
        return paged_attention(q, k, v, self.k_cache, self.v_cache, attention).flatten(1)
