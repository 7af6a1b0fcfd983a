"""The decoder of Llama, Mistral, Qwen2 and Qwen3: RMSNorm, rope, grouped queries, gated MLP.

QKV and gate-up are one projection each; ModelConfig says which variant has biases, QK-norm or scaled rope.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.kernels.attention import AttentionInput
from framework.models.attention import PagedAttention
from framework.models.config import Llama3Scaling, ModelConfig


def rope_frequencies(theta: float, head_dim: int, scaling: Llama3Scaling | None) -> Tensor:
    """Radians per position of each pair of channels, (head_dim / 2,), float32.

    Rope is arXiv:2104.09864. llama3 scaling divides frequencies whose wavelength is above the original context /
    low_freq_factor by `factor`, keeps those below context / high_freq_factor, and interpolates between.
    """
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, device="cpu").float() / head_dim)
    if scaling is None:
        return frequencies
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / scaling.factor)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (num_tokens, heads, head_dim) by cos and sin (num_tokens, 1, head_dim), sin's first half negated."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class LlamaAttention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        q_size = config.num_heads * config.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, sum(config.qkv_sizes), bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=config.o_bias)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.paged = PagedAttention()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: AttentionInput) -> Tensor:
        qkv = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))  # (num_tokens, num_heads + 2 num_kv_heads, head_dim)
        qk, v = qkv.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split((self.num_heads, self.num_kv_heads), dim=1)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=1)
        qk = apply_rope(qk, cos, sin)  # both at once: half the launches
        q, k = qk.split((self.num_heads, self.num_kv_heads), dim=1)
        return self.o_proj(self.paged(q, k, v, attention))


class LlamaMLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)  # (num_tokens, intermediate_size) each
        return self.down_proj(F.silu(gate) * up)


class LlamaBlock(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = LlamaAttention(config)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: AttentionInput) -> Tensor:
        x = x + self.attention(self.input_norm(x), cos, sin, attention)  # (num_tokens, hidden_size)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """A Llama-like decoder over a flattened batch of tokens."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.rope_theta is not None
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaBlock(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        tied = config.tie_embeddings
        self.lm_head = None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_buffer("cos", torch.empty(config.max_model_len, config.head_dim), persistent=False)
        self.register_buffer("sin", torch.empty(config.max_model_len, config.head_dim), persistent=False)
        self.reset_rope()

    def reset_rope(self) -> None:
        """Fill the rope tables (again): weights made on the meta device are empty afterwards."""
        config = self.config
        assert config.rope_theta is not None
        frequencies = rope_frequencies(config.rope_theta, config.head_dim, config.rope_scaling)
        angles = torch.arange(config.max_model_len, device="cpu")[:, None] * frequencies
        self.cos.copy_(angles.cos().repeat(1, 2))
        self.sin.copy_(torch.cat((-angles.sin(), angles.sin()), dim=1))

    def forward(self, token_ids: Tensor, positions: Tensor, attention: AttentionInput) -> Tensor:
        """(num_tokens,) ids and positions → (num_tokens, hidden_size), after the last norm."""
        x = self.embed_tokens(token_ids)
        cos = self.cos.index_select(0, positions)[:, None]  # (num_tokens, 1, head_dim)
        sin = self.sin.index_select(0, positions)[:, None]
        for layer in self.layers:
            x = layer(x, cos, sin, attention)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, hidden_size) → (rows, vocab_size)."""
        return F.linear(hidden, self.embed_tokens.weight) if self.lm_head is None else self.lm_head(hidden)

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """Hugging Face's names, less the leading `model.`, → views of this model's parameters."""
        q, k, v = self.config.qkv_sizes
        tensors = {"embed_tokens.weight": self.embed_tokens.weight.data, "norm.weight": self.norm.weight.data}
        if self.lm_head is not None:
            tensors["lm_head.weight"] = self.lm_head.weight.data
        for name, parameter in self.layers.named_parameters():
            number, _, inner = name.partition(".")
            module, _, kind = inner.rpartition(".")  # kind: weight or bias
            for part, view in _unfused(module, parameter.data, (q, k, v)):
                tensors[f"layers.{number}.{part}.{kind}"] = view
        return tensors


def _unfused(module: str, parameter: Tensor, qkv_sizes: tuple[int, int, int]) -> list[tuple[str, Tensor]]:
    """The checkpoint's modules that make up one of a block's modules, with their rows of its parameter."""
    if module == "attention.qkv_proj":
        names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
        return list(zip(names, parameter.split(qkv_sizes), strict=True))
    if module == "mlp.gate_up_proj":
        return list(zip(["mlp.gate_proj", "mlp.up_proj"], parameter.chunk(2), strict=True))
    norms = {"input_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    return [(norms[module] if module in norms else module.replace("attention.", "self_attn."), parameter)]
