"""A model's shape: ModelConfig, made of the keys of a Hugging Face config.json, and written as such."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from framework.models.config_file import GPT2File, LlamaFile, read_file, rope_of
from framework.models.rope import SCALINGS, RopeScaling


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a decoder. `checkpoint` is the folder its weights came from, None where they are random."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int  # positions that the weights have, or were trained for
    max_model_len: int  # prompt plus output tokens of one request; at most max_positions
    norm_eps: float
    tie_embeddings: bool
    eos_token_ids: tuple[int, ...] = ()
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope_theta: float | None = None  # None: learned positions
    rope_scaling: RopeScaling | None = None
    windows: tuple[int | None, ...] = ()  # of each layer, the tokens that a query sees, its own included; None: all
    checkpoint: str | None = None

    @property
    def layer_windows(self) -> tuple[int | None, ...]:
        """`windows`, of which one that a sequence cannot outgrow is None."""
        return tuple(None if window is None or window >= self.max_model_len else window for window in self.windows)

    @property
    def has_window(self) -> bool:
        """Whether a layer does not see the whole of every sequence."""
        return any(window is not None for window in self.layer_windows)

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Rows of q, k and v, in this order, in the fused projection."""
        return self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim, self.num_kv_heads * self.head_dim


def parse_config(
    config: Mapping[str, Any], max_model_len: int | None = None, source: str = "model.config"
) -> ModelConfig:
    """ModelConfig from the keys of a config.json, with `max_model_len` at most what the positions allow.

    Raises ValueError naming `source` and the key for what is missing, impossible or not supported.
    """
    file = read_file(config, source)
    if isinstance(file, GPT2File):
        return _from_gpt2(file, max_model_len, source)
    return _from_llama(file, max_model_len, source)


def config_json(config: ModelConfig) -> dict[str, Any]:
    """The keys of a config.json from which parse_config and transformers make this shape again."""
    eos = list(config.eos_token_ids)
    common = {
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
    }
    return common | (_gpt2_json(config) if config.model_type == "gpt2" else _llama_json(config))


def _gpt2_json(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": config.hidden_size,
        "n_inner": config.intermediate_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new",
    }


def _llama_json(config: ModelConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        rope_type = next(name for name, kind in SCALINGS.items() if isinstance(config.rope_scaling, kind))
        given = {name: value for name, value in asdict(config.rope_scaling).items() if value is not None}
        rope = {"rope_type": rope_type, **given}
    return {
        "architectures": [f"{config.model_type.capitalize()}ForCausalLM"],
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "rope_parameters": {"rope_theta": config.rope_theta, **rope},
        **_window_json(config),
    }


def _window_json(config: ModelConfig) -> dict[str, Any]:
    window = next((window for window in config.windows if window is not None), None)
    if window is None or config.model_type == "mistral":
        return {"sliding_window": window}
    kinds = ["full_attention" if window is None else "sliding_attention" for window in config.windows]
    return {"sliding_window": window, "use_sliding_window": True, "layer_types": kinds}


def check_keys(config: Mapping[str, Any]) -> None:
    """ValueError if a config written by hand has a key that this framework does not read."""
    allowed = (GPT2File if config.get("model_type") == "gpt2" else LlamaFile).model_fields
    unknown = sorted(set(config) - set(allowed))
    if unknown:
        raise ValueError(f"model.config has unknown keys {unknown}; allowed: {sorted(allowed)}")


def _from_llama(file: LlamaFile, max_model_len: int | None, source: str) -> ModelConfig:
    num_heads, num_kv_heads, head_dim = _heads(file, source)
    windows = file.windows()
    if len(windows) != file.num_hidden_layers:
        raise ValueError(f"{source} has {len(windows)} layer_types; num_hidden_layers is {file.num_hidden_layers}")
    theta, scaling = rope_of(file, source)
    return ModelConfig(
        model_type=file.model_type,
        vocab_size=file.vocab_size,
        hidden_size=file.hidden_size,
        intermediate_size=file.intermediate_size,
        num_layers=file.num_hidden_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_positions=file.max_position_embeddings,
        max_model_len=_context(max_model_len, file.max_position_embeddings),
        norm_eps=file.rms_norm_eps,
        tie_embeddings=file.tie_word_embeddings,
        eos_token_ids=file.eos_token_id,
        qkv_bias=file.model_type == "qwen2" or file.attention_bias,
        o_bias=file.model_type in ("llama", "qwen3") and file.attention_bias,
        mlp_bias=file.model_type == "llama" and file.mlp_bias,
        qk_norm=file.model_type == "qwen3",
        rope_theta=theta,
        rope_scaling=scaling,
        windows=windows,
    )


def _heads(file: LlamaFile, source: str) -> tuple[int, int, int]:
    """How many heads there are, how many of keys, and the channels of each."""
    num_heads, head_dim, num_kv_heads = file.num_attention_heads, file.head_dim, file.num_key_value_heads
    if head_dim is None:
        if file.model_type == "qwen3" or file.hidden_size % num_heads:
            sizes = f"hidden_size {file.hidden_size}, {num_heads} attention heads"
            raise ValueError(f"{source} needs head_dim ({sizes})")
        head_dim = file.hidden_size // num_heads
    if head_dim % 2:
        raise ValueError(f"{source} has head_dim={head_dim}; it should be even, as rope turns channels in pairs")
    if num_kv_heads is None:
        if file.model_type != "llama":  # only llama's first checkpoints have no such key
            raise ValueError(f"{source} lacks 'num_key_value_heads'")
        num_kv_heads = num_heads
    if num_heads % num_kv_heads:
        raise ValueError(f"{source}: num_key_value_heads {num_kv_heads} must divide {num_heads} attention heads")
    return num_heads, num_kv_heads, head_dim


def _from_gpt2(file: GPT2File, max_model_len: int | None, source: str) -> ModelConfig:
    if file.n_embd % file.n_head:
        raise ValueError(f"{source}: n_embd {file.n_embd} must be a multiple of n_head {file.n_head}")
    return ModelConfig(
        model_type="gpt2",
        vocab_size=file.vocab_size,
        hidden_size=file.n_embd,
        intermediate_size=4 * file.n_embd if file.n_inner is None else file.n_inner,
        num_layers=file.n_layer,
        num_heads=file.n_head,
        num_kv_heads=file.n_head,
        head_dim=file.n_embd // file.n_head,
        max_positions=file.n_positions,
        max_model_len=_context(max_model_len, file.n_positions),
        norm_eps=file.layer_norm_epsilon,
        tie_embeddings=file.tie_word_embeddings,
        eos_token_ids=file.eos_token_id,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        windows=(None,) * file.n_layer,
    )


def _context(max_model_len: int | None, max_positions: int) -> int:
    if max_model_len is None:
        return max_positions
    if not 1 <= max_model_len <= max_positions:
        raise ValueError(f"max_model_len {max_model_len} must be from 1 to the model's {max_positions} positions")
    return max_model_len
