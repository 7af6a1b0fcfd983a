"""The decoder of GPT-2: LayerNorm, learned positions, GELU; every linear has a bias."""

from __future__ import annotations

from torch import Tensor, nn

from framework.kernels.attention import Attention
from framework.models.config import ModelConfig
from framework.models.layers import Linear, PagedAttention, SurroundedLinear, TokenEmbedding


class GPT2Block(nn.Module):
    """`project` and `finish` are what torch.compile sees; attention stands between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden_size = config.hidden_size
        self.input_norm = nn.LayerNorm(hidden_size, eps=config.norm_eps)
        self.qkv_proj = Linear(hidden_size, 3 * hidden_size)
        self.attention = PagedAttention(config)
        self.o_proj = Linear(hidden_size, hidden_size)
        self.mlp_norm = nn.LayerNorm(hidden_size, eps=config.norm_eps)
        self.up_proj = Linear(hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, hidden_size)

    def forward(self, x: Tensor, attention: Attention) -> Tensor:
        """(num_tokens, hidden_size) → the same."""
        return self.finish(x, self.attention(self.project(x), None, attention))

    def project(self, x: Tensor) -> Tensor:
        return self.qkv_proj(x, norm=self.input_norm)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.o_proj(attended, residual=x)
        return self.down_proj(self.up_proj(x, norm=self.mlp_norm, activation="gelu"), residual=x)


class GPT2(nn.Module):
    """GPT-2 over a flattened batch of tokens."""

    prefix, embedding = "transformer.", "wte"  # of the checkpoint's names

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens: nn.Embedding = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_positions, config.hidden_size)
        self.layers = nn.ModuleList(GPT2Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.lm_head: SurroundedLinear = Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, token_ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """(num_tokens,) ids and positions → (num_tokens, hidden_size), before the last norm."""
        x = self.embed_tokens(token_ids) + self.embed_positions(positions)
        for layer in self.layers:
            x = layer(x, attention)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, hidden_size), before the last norm → (rows, vocab_size)."""
        return self.lm_head(hidden, norm=self.norm)

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """Hugging Face's names, less the leading `transformer.`, → views of this model's parameters."""
        tensors = {"wte.weight": self.embed_tokens.weight.data, "wpe.weight": self.embed_positions.weight.data}
        tensors |= {"ln_f.weight": self.norm.weight.data, "ln_f.bias": self.norm.bias.data}
        if not self.config.tie_embeddings:
            tensors["lm_head.weight"] = self.lm_head.weight.data
        for name, parameter in self.layers.named_parameters():
            number, _, inner = name.partition(".")
            module, _, kind = inner.rpartition(".")
            view = parameter.data.T if parameter.ndim == 2 else parameter.data  # Conv1D keeps (in, out)
            tensors[f"h.{number}.{CHECKPOINT_MODULES[module]}.{kind}"] = view
        return tensors


CHECKPOINT_MODULES = {
    "input_norm": "ln_1",
    "qkv_proj": "attn.c_attn",
    "o_proj": "attn.c_proj",
    "mlp_norm": "ln_2",
    "up_proj": "mlp.c_fc",
    "down_proj": "mlp.c_proj",
}
