"""The decoder of Llama, Mistral, Qwen2 and Qwen3: RMSNorm, rope, grouped queries, gated MLP.

QKV and gate-up are one projection each; ModelConfig says which variant has biases, QK-norm or scaled rope.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from framework.kernels.attention import Attention
from framework.models.config import ModelConfig
from framework.models.layers import Linear, PagedAttention, SurroundedLinear, TokenEmbedding
from framework.models.rope import rope_table


class LlamaBlock(nn.Module):
    """`project` and `finish` are what torch.compile sees; attention stands between them."""

    def __init__(self, config: ModelConfig, window: int | None) -> None:
        super().__init__()
        hidden_size, q_size = config.hidden_size, config.num_heads * config.head_dim
        self.input_norm = nn.RMSNorm(hidden_size, eps=config.norm_eps)
        self.qkv_proj = Linear(hidden_size, sum(config.qkv_sizes), bias=config.qkv_bias)
        self.attention = PagedAttention(config, window)
        self.o_proj = Linear(q_size, hidden_size, bias=config.o_bias)
        self.mlp_norm = nn.RMSNorm(hidden_size, eps=config.norm_eps)
        self.gate_up_proj = Linear(hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor, rope: Tensor, attention: Attention) -> Tensor:
        """(num_tokens, hidden_size) → the same."""
        return self.finish(x, self.attention(self.project(x), rope, attention))

    def project(self, x: Tensor) -> Tensor:
        return self.qkv_proj(x, norm=self.input_norm)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.o_proj(attended, residual=x)
        gated = self.gate_up_proj(x, norm=self.mlp_norm, activation="silu_gate")
        return self.down_proj(gated, residual=x)


class Llama(nn.Module):
    """A Llama-like decoder over a flattened batch of tokens.

    `rope` is (max_model_len, 2, head_dim): cos and sin of every position, the first half of sin negated.
    """

    prefix, embedding = "model.", "embed_tokens"  # of the checkpoint's names
    rope: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.rope_theta is not None
        self.config = config
        self.embed_tokens: nn.Embedding = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaBlock(config, window) for window in config.layer_windows)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.lm_head: SurroundedLinear = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_buffer("rope", torch.empty(config.max_model_len, 2, config.head_dim), persistent=False)
        self.reset_rope()

    def reset_rope(self) -> None:
        """Fill the rope table (again): what was made on the meta device is empty afterwards."""
        config = self.config
        assert config.rope_theta is not None
        self.rope.copy_(rope_table(config.rope_theta, config.head_dim, config.rope_scaling, config.max_model_len))

    def forward(self, token_ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """(num_tokens,) ids and positions → (num_tokens, hidden_size), before the last norm."""
        x = self.embed_tokens(token_ids)
        rope = self.rope.index_select(0, positions)  # (num_tokens, 2, head_dim)
        for layer in self.layers:
            x = layer(x, rope, attention)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, hidden_size), before the last norm → (rows, vocab_size)."""
        return self.lm_head(hidden, norm=self.norm)

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """Hugging Face's names, less the leading `model.`, → views of this model's parameters."""
        q, k, v = self.config.qkv_sizes
        tensors = {"embed_tokens.weight": self.embed_tokens.weight.data, "norm.weight": self.norm.weight.data}
        if not self.config.tie_embeddings:
            tensors["lm_head.weight"] = self.lm_head.weight.data
        for name, parameter in self.layers.named_parameters():
            number, _, inner = name.partition(".")
            module, _, kind = inner.rpartition(".")  # kind: weight or bias
            for part, view in _unfused(module, parameter.data, (q, k, v)):
                tensors[f"layers.{number}.{part}.{kind}"] = view
        return tensors


CHECKPOINT_MODULES = {
    "input_norm": ("input_layernorm",),
    "qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.q_norm": ("self_attn.q_norm",),
    "attention.k_norm": ("self_attn.k_norm",),
    "o_proj": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "down_proj": ("mlp.down_proj",),
}


def _unfused(module: str, parameter: Tensor, qkv_sizes: tuple[int, int, int]) -> list[tuple[str, Tensor]]:
    """The checkpoint's modules that make up one of a block's modules, with their rows of its parameter."""
    names = CHECKPOINT_MODULES[module]
    parts = parameter.split(qkv_sizes) if module == "qkv_proj" else parameter.chunk(len(names))
    return list(zip(names, parts, strict=True))
