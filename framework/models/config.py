"""A model's shape: ModelConfig, read from the keys of a Hugging Face config.json, and written as such.

Whatever would change the arithmetic and is not implemented here is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

LLAMA_TYPES = ("llama", "mistral", "qwen2", "qwen3")
SUPPORTED_TYPES = (*LLAMA_TYPES, "gpt2")

COMMON_KEYS = frozenset({"model_type", "vocab_size", "tie_word_embeddings", "eos_token_id"})
LLAMA_KEYS = COMMON_KEYS | {
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "max_position_embeddings", "rms_norm_eps", "hidden_act", "attention_bias", "mlp_bias"),
    *("rope_theta", "rope_scaling", "rope_parameters", "sliding_window", "use_sliding_window"),
}
GPT2_KEYS = COMMON_KEYS | {
    *("n_embd", "n_inner", "n_layer", "n_head", "n_positions", "layer_norm_epsilon", "activation_function"),
}


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's stretching of the slow rope frequencies (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


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
    rope_scaling: Llama3Scaling | None = None
    checkpoint: str | None = None

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Rows of q, k and v, in this order, in the fused projection."""
        return self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim, self.num_kv_heads * self.head_dim


def parse_config(config: Mapping[str, Any], max_model_len: int | None = None) -> ModelConfig:
    """ModelConfig from the keys of a config.json, with `max_model_len` at most what the positions allow.

    Raises ValueError naming the key for a missing or impossible shape, an unsupported model type, activation, rope
    type or quantization, and for sliding-window attention narrower than `max_model_len`.
    """
    model_type = config.get("model_type")
    if model_type not in SUPPORTED_TYPES:
        raise ValueError(f"model_type {model_type!r} is not supported; supported: {', '.join(SUPPORTED_TYPES)}")
    if config.get("quantization_config") is not None:
        raise ValueError(
            "the checkpoint is quantized (config.json has quantization_config); "
            "load the original weights in float32, float16 or bfloat16 instead"
        )
    parsed = _parse_gpt2(config, max_model_len) if model_type == "gpt2" else _parse_llama(config, max_model_len)
    if parsed.num_heads % parsed.num_kv_heads:
        raise ValueError(f"num_key_value_heads {parsed.num_kv_heads} must divide {parsed.num_heads} attention heads")
    return parsed


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
    if config.model_type == "gpt2":
        return common | {
            "architectures": ["GPT2LMHeadModel"],
            "n_embd": config.hidden_size,
            "n_inner": config.intermediate_size,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_positions": config.max_positions,
            "layer_norm_epsilon": config.norm_eps,
            "activation_function": "gelu_new",
        }
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        rope = {"rope_type": "llama3", **asdict(config.rope_scaling)}
    return common | {
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
        "sliding_window": None,
    }


def check_keys(config: Mapping[str, Any]) -> None:
    """ValueError if a config written by hand has a key that this framework does not read."""
    allowed = GPT2_KEYS if config.get("model_type") == "gpt2" else LLAMA_KEYS
    unknown = sorted(set(config) - allowed)
    if unknown:
        raise ValueError(f"model.config has unknown keys {unknown}; allowed: {sorted(allowed)}")


def _parse_llama(config: Mapping[str, Any], max_model_len: int | None) -> ModelConfig:
    model_type = config["model_type"]
    num_heads = _size(config, "num_attention_heads")
    hidden_size = _size(config, "hidden_size")
    if config.get("head_dim") is None and (model_type == "qwen3" or hidden_size % num_heads):
        raise ValueError(f"model config needs head_dim (hidden_size {hidden_size}, {num_heads} attention heads)")
    # Only llama's first checkpoints have no num_key_value_heads
    one_kv_head_each = model_type == "llama" and config.get("num_key_value_heads") is None
    _require(config, "hidden_act", "silu", "silu")
    max_positions = _size(config, "max_position_embeddings")
    theta, scaling = _parse_rope(config, max_positions)
    bias = bool(config.get("attention_bias", False))
    parsed = ModelConfig(
        model_type=model_type,
        vocab_size=_size(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_size(config, "intermediate_size"),
        num_layers=_size(config, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_heads if one_kv_head_each else _size(config, "num_key_value_heads"),
        head_dim=hidden_size // num_heads if config.get("head_dim") is None else _size(config, "head_dim"),
        max_positions=max_positions,
        max_model_len=_context(max_model_len, max_positions),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        eos_token_ids=_eos(config),
        qkv_bias=model_type == "qwen2" or bias,
        o_bias=model_type in ("llama", "qwen3") and bias,
        mlp_bias=model_type == "llama" and bool(config.get("mlp_bias", False)),
        qk_norm=model_type == "qwen3",
        rope_theta=theta,
        rope_scaling=scaling,
    )
    _check_window(config, parsed.max_model_len)
    return parsed


def _parse_gpt2(config: Mapping[str, Any], max_model_len: int | None) -> ModelConfig:
    num_heads = _size(config, "n_head")
    hidden_size = _size(config, "n_embd")
    if hidden_size % num_heads:
        raise ValueError(f"n_embd {hidden_size} must be a multiple of n_head {num_heads}")
    _require(config, "activation_function", "gelu_new", "gelu_new", "gelu_pytorch_tanh")
    _require(config, "scale_attn_weights", True, True)
    _require(config, "scale_attn_by_inverse_layer_idx", False, False)
    _require(config, "add_cross_attention", False, False)
    max_positions = _size(config, "n_positions")
    return ModelConfig(
        model_type="gpt2",
        vocab_size=_size(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size if config.get("n_inner") is None else _size(config, "n_inner"),
        num_layers=_size(config, "n_layer"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        max_positions=max_positions,
        max_model_len=_context(max_model_len, max_positions),
        norm_eps=float(config.get("layer_norm_epsilon", 1e-5)),
        tie_embeddings=bool(config.get("tie_word_embeddings", True)),
        eos_token_ids=_eos(config),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
    )


def _parse_rope(config: Mapping[str, Any], max_positions: int) -> tuple[float, Llama3Scaling | None]:
    """Rope base and scaling from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ValueError("partial_rotary_factor is not supported: rope must turn the whole head")
    if rope_type == "default":
        return theta, None
    if rope_type != "llama3":
        raise ValueError(f"rope_type {rope_type!r} is not supported; supported: default, llama3")
    missing = sorted({"factor", "low_freq_factor", "high_freq_factor"} - set(rope))
    if missing:
        raise ValueError(f"llama3 rope scaling needs {missing}")
    return theta, Llama3Scaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_position_embeddings=int(rope.get("original_max_position_embeddings", max_positions)),
    )


def _check_window(config: Mapping[str, Any], max_model_len: int) -> None:
    """Sliding-window attention equals full attention only up to the window's width."""
    model_type = config["model_type"]
    if model_type == "mistral":
        window = config.get("sliding_window", 4096)  # transformers' default where the key is missing
    elif model_type in ("qwen2", "qwen3") and config.get("use_sliding_window", False):
        window = config.get("sliding_window", 4096)
    else:
        window = None
    if window is not None and window < max_model_len:
        raise ValueError(
            f"{model_type} attends to a sliding window of {window} tokens, which is not implemented: "
            f"set model.max_model_len={window} or less (now {max_model_len}), where it equals full attention"
        )


def _context(max_model_len: int | None, max_positions: int) -> int:
    if max_model_len is None:
        return max_positions
    if not 1 <= max_model_len <= max_positions:
        raise ValueError(f"max_model_len {max_model_len} must be from 1 to the model's {max_positions} positions")
    return max_model_len


def _size(config: Mapping[str, Any], key: str) -> int:
    if config.get(key) is None:
        raise ValueError(f"model config of type {config['model_type']!r} lacks {key!r}")
    value = config[key]
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"model config has {key}={value!r}; it must be an integer of at least 1")
    return value


def _require(config: Mapping[str, Any], key: str, default: Any, *supported: Any) -> None:
    value = config.get(key, default)
    if value not in supported:
        raise ValueError(f"model config has {key}={value!r}; supported: {', '.join(map(str, supported))}")


def _eos(config: Mapping[str, Any]) -> tuple[int, ...]:
    eos = config.get("eos_token_id")
    if eos is None:
        return ()
    return (eos,) if isinstance(eos, int) else tuple(eos)
