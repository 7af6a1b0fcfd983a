"""The decoder of GPT-2: LayerNorm, learned positions, GELU; every linear has a bias."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from framework.kernels.attention import AttentionInput
from framework.models.attention import PagedAttention
from framework.models.config import ModelConfig


class GPT2Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.paged = PagedAttention()

    def forward(self, x: Tensor, attention: AttentionInput) -> Tensor:
        qkv = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))  # (num_tokens, 3 num_heads, head_dim)
        q, k, v = qkv.chunk(3, dim=1)
        return self.o_proj(self.paged(q, k, v, attention))


class GPT2MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class GPT2Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = GPT2Attention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = GPT2MLP(config)

    def forward(self, x: Tensor, attention: AttentionInput) -> Tensor:
        x = x + self.attention(self.input_norm(x), attention)  # (num_tokens, hidden_size)
        return x + self.mlp(self.mlp_norm(x))


class GPT2(nn.Module):
    """GPT-2 over a flattened batch of tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_positions, config.hidden_size)
        self.layers = nn.ModuleList(GPT2Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        tied = config.tie_embeddings
        self.lm_head = None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, token_ids: Tensor, positions: Tensor, attention: AttentionInput) -> Tensor:
        """(num_tokens,) ids and positions → (num_tokens, hidden_size), after the last norm."""
        x = self.embed_tokens(token_ids) + self.embed_positions(positions)
        for layer in self.layers:
            x = layer(x, attention)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, hidden_size) → (rows, vocab_size)."""
        return F.linear(hidden, self.embed_tokens.weight) if self.lm_head is None else self.lm_head(hidden)

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """Hugging Face's names, less the leading `transformer.`, → views of this model's parameters."""
        names = {
            "input_norm": "ln_1",
            "attention.qkv_proj": "attn.c_attn",
            "attention.o_proj": "attn.c_proj",
            "mlp_norm": "ln_2",
            "mlp.up_proj": "mlp.c_fc",
            "mlp.down_proj": "mlp.c_proj",
        }
        tensors = {"wte.weight": self.embed_tokens.weight.data, "wpe.weight": self.embed_positions.weight.data}
        tensors |= {"ln_f.weight": self.norm.weight.data, "ln_f.bias": self.norm.bias.data}
        if self.lm_head is not None:
            tensors["lm_head.weight"] = self.lm_head.weight.data
        for name, parameter in self.layers.named_parameters():
            number, _, inner = name.partition(".")
            module, _, kind = inner.rpartition(".")
            view = parameter.data.T if parameter.ndim == 2 else parameter.data  # Conv1D keeps (in, out)
            tensors[f"h.{number}.{names[module]}.{kind}"] = view
        return tensors
