"""A Hugging Face config.json with types: which keys are read, and what each may be.

Whatever would change the arithmetic and is not implemented here is refused by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from framework.checks import cut, shown
from framework.models.rope import SCALINGS, RopeScaling

LLAMA_TYPES = ("llama", "mistral", "qwen2", "qwen3")
SUPPORTED_TYPES = (*LLAMA_TYPES, "gpt2")
DYNAMIC = (
    "rope_type 'dynamic' is not supported: it turns every key anew by the length of the longest sequence in the batch, "
    "and keys in a cache stay as they were turned; yarn, linear and llama3 are supported"
)
DEFAULT_THETA = 10000.0

# The largest are far above any model's, and so small that no product of two overflows
Size = Annotated[int, Field(ge=1, le=2**24)]
Heads = Annotated[int, Field(ge=1, le=2**12)]
Layers = Annotated[int, Field(ge=1, le=1000)]
NormEps = Annotated[float, Field(ge=0, allow_inf_nan=False)]
TokenIds = Annotated[
    tuple[Annotated[int, Field(strict=True, ge=0)], ...],
    BeforeValidator(lambda ids: () if ids is None else tuple(ids) if isinstance(ids, list) else (ids,)),
]
LayerType = Literal["full_attention", "sliding_attention"]


class ConfigFile(BaseModel):
    """Keys that every family has."""

    model_config = ConfigDict(strict=True, frozen=True, protected_namespaces=())

    model_type: str
    vocab_size: Size
    eos_token_id: TokenIds = ()


class LlamaFile(ConfigFile):
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads | None = None
    head_dim: Heads | None = None
    max_position_embeddings: Size
    rms_norm_eps: NormEps = 1e-6
    hidden_act: Literal["silu"] = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: float | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    partial_rotary_factor: float = 1.0
    sliding_window: Size | None = 4096  # transformers' default where the key is missing
    use_sliding_window: bool = False
    max_window_layers: Annotated[int, Field(ge=0)] = 28
    layer_types: list[LayerType] | None = None

    def windows(self) -> tuple[int | None, ...]:
        """Tokens that a query of each layer sees, its own included; None: all. As transformers has it."""
        if self.sliding_window is None or not (self.model_type == "mistral" or self.use_sliding_window):
            return (None,) * self.num_hidden_layers
        if self.model_type == "mistral":
            return (self.sliding_window,) * self.num_hidden_layers
        if self.layer_types is not None:
            return tuple(self.sliding_window if one == "sliding_attention" else None for one in self.layer_types)
        numbers = range(self.num_hidden_layers)
        return tuple(self.sliding_window if number >= self.max_window_layers else None for number in numbers)


class GPT2File(ConfigFile):
    n_embd: Size
    n_inner: Size | None = None
    n_layer: Layers
    n_head: Heads
    n_positions: Size
    layer_norm_epsilon: NormEps = 1e-5
    activation_function: Literal["gelu_new", "gelu_pytorch_tanh"] = "gelu_new"
    tie_word_embeddings: bool = True
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    add_cross_attention: Literal[False] = False


Checked = TypeVar("Checked")


def checked(kind: type[Checked], values: Any, source: str) -> Checked:
    """`values` as a `kind`; ValueError naming `source`, the first key that does not fit, and what it may be."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = cut(".".join(map(str, problem["loc"])))
        if problem["type"] == "missing" or problem["input"] is None:
            raise ValueError(f"{source} lacks {key!r}") from None
        allowed = problem["msg"].removeprefix("Input ")
        raise ValueError(f"{source} has {key}={shown(problem['input'])}; it {allowed}") from None


def read_file(config: Mapping[str, Any], source: str) -> LlamaFile | GPT2File:
    """The typed config; ValueError naming `source` and the key for what is missing, impossible or not supported."""
    model_type = config.get("model_type")
    if model_type not in SUPPORTED_TYPES:
        supported = ", ".join(SUPPORTED_TYPES)
        raise ValueError(f"{source}: model_type {shown(model_type)} is not supported; supported: {supported}")
    if config.get("quantization_config") is not None:
        raise ValueError(
            f"{source}: the checkpoint is quantized (it has quantization_config); "
            "load the original weights in float32, float16 or bfloat16 instead"
        )
    is_gpt2 = model_type == "gpt2"
    file = checked(GPT2File, config, source) if is_gpt2 else checked(LlamaFile, config, source)
    check_tokens(file.eos_token_id, file.vocab_size, source)
    return file


def check_tokens(eos_token_ids: tuple[int, ...], vocab_size: int, source: str) -> None:
    """ValueError for an end-of-sequence token that the model cannot sample."""
    outside = [token for token in eos_token_ids if token >= vocab_size]
    if outside:
        raise ValueError(f"{source} has eos_token_id={shown(outside[0])}; it should be below vocab_size={vocab_size}")


def rope_of(file: LlamaFile, source: str) -> tuple[float, RopeScaling | None]:
    """Rope's base and scaling, from `rope_parameters` (transformers 5), `rope_scaling` and `rope_theta` (before).

    Where both are there transformers takes `rope_scaling`; so does this, but it refuses two bases or two scalings.
    """
    new, old = dict(file.rope_parameters or {}), dict(file.rope_scaling or {})
    for rope in (new, old):
        rope["rope_type"] = rope.get("rope_type", rope.pop("type", "default"))
    if old["rope_type"] != "default" and new["rope_type"] not in ("default", old["rope_type"]):
        raise ValueError(f"{source} has rope_scaling={shown(old)} and rope_parameters={shown(new)}: leave one out")
    given = [_theta(one, source) for one in ({"rope_theta": file.rope_theta}, new, old)]
    thetas = {theta for theta in given if theta is not None}
    if len(thetas) > 1:
        raise ValueError(f"{source} has several rope_theta: {shown(thetas)}; leave one of them")
    rope = old if file.rope_scaling else new
    if [file.partial_rotary_factor, rope.pop("partial_rotary_factor", 1.0)] != [1.0, 1.0]:
        raise ValueError(f"{source}: partial_rotary_factor is not supported: rope must turn the whole head")
    scaling = _scaling(rope, file.max_position_embeddings, source)
    return next(iter(thetas), DEFAULT_THETA), scaling


class RopeBase(BaseModel):
    model_config = ConfigDict(strict=True)

    rope_theta: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None


def _theta(rope: dict[str, Any], source: str) -> float | None:
    return checked(RopeBase, {"rope_theta": rope.pop("rope_theta", None)}, source).rope_theta


def _scaling(rope: dict[str, Any], max_positions: int, source: str) -> RopeScaling | None:
    rope_type = rope.pop("rope_type")
    if rope_type == "dynamic":
        raise ValueError(f"{source}: {DYNAMIC}")
    if rope_type not in ["default", *SCALINGS]:
        supported = ", ".join(("default", *SCALINGS))
        raise ValueError(f"{source}: rope_type {shown(rope_type)} is not supported; supported: {supported}")
    kind = SCALINGS.get(rope_type)
    names = set() if kind is None else {field.name for field in fields(kind)}
    unread = sorted(set(rope) - names)
    if unread:
        warnings.warn(
            f"{source}: rope_type {rope_type!r} does not use {shown(unread)}, nor does transformers", stacklevel=2
        )
    if kind is None:
        return None
    if "original_max_position_embeddings" in names:
        rope.setdefault("original_max_position_embeddings", max_positions)
    known = {name: value for name, value in rope.items() if name in names}
    return checked(kind, known, f"{source}: {rope_type} rope")
