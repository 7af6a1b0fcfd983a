"""What an int8 KV cache takes off the keys of a model whose keys have a bias, as Qwen2's and GPT-2's do.

A key is R(p) (W x + b), with rope's rotation R(p) at position p. What is the same in all keys may be taken off: it adds
the same number to all scores of a query. In pairs of channels that turn slowly, R(p) b is nearly that.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from framework.models.gpt2 import GPT2
from framework.models.llama import Llama

# Of a pair of channels: up to here int8 keys raise the perplexity of models/tiny by less than 1% (docs/precision.md)
MOST_LEFT = 50.0


def key_offsets(model: Llama | GPT2) -> list[Tensor | None]:
    """For each layer the LayerCache.key_offset that keeps its keys small; None where their bias is zero or normed.

    That is the middle between R(p) b at the model's first and at its last position, in those pairs that turn by less
    than a quarter in between; 0 in the others. GPT-2's keys are not turned: it is b.
    """
    arc = _arc(model)
    return [None if bias is None else _offset(bias, arc) for bias in key_biases(model)]


def largest_left(model: Llama | GPT2) -> float:
    """The largest norm of a pair of channels that the offsets leave of a key bias at any position; 0 without any."""
    arc = _arc(model)
    return max((_left(bias, arc) for bias in key_biases(model) if bias is not None), default=0.0)


def tell_of_biases(model: Llama | GPT2) -> None:
    """A warning if int8 keys of this model lose quality by their biases."""
    left = largest_left(model)
    if left > MOST_LEFT:
        warnings.warn(
            f"the model's key biases leave {left:.1f} in a pair of channels that turns, and int8 keys lose quality "
            f"from {MOST_LEFT:.0f} on: measure it (experiment=quantization), or keep keys as they are "
            "(engine.kv_dtype=null)",
            stacklevel=2,
        )


def key_biases(model: Llama | GPT2) -> list[Tensor | None]:
    """(num_kv_heads, head_dim) float32 of each layer; None where it is zero, or a norm comes after it."""
    return [None if model.config.qk_norm else _key_bias(model, block) for block in model.layers]


def _key_bias(model: Llama | GPT2, block: Any) -> Tensor | None:
    config, bias = model.config, block.qkv_proj.bias
    if bias is None:
        return None
    keys: Tensor = bias.detach().split(config.qkv_sizes)[1].float().view(config.num_kv_heads, config.head_dim)
    return keys if keys.any() else None


class _Arc(NamedTuple):
    """How far rope turns keys within the model's context."""

    first: Tensor  # (2, head_dim) float32, cos and sin as in Llama.rope
    last: Tensor
    is_slow: Tensor  # (head_dim,): whether a channel's pair turns by less than a quarter


def _arc(model: Llama | GPT2) -> _Arc | None:
    """None: keys are not turned."""
    if isinstance(model, GPT2):
        return None
    return _Arc(model.rope[0].float(), model.rope[-1].float(), (model.rope[:, 0] > 0).all(dim=0))


def _offset(bias: Tensor, arc: _Arc | None) -> Tensor:
    if arc is None:
        return bias
    return torch.where(arc.is_slow, (_turned(bias, arc.first) + _turned(bias, arc.last)) / 2, 0.0)


def _left(bias: Tensor, arc: _Arc | None) -> float:
    if arc is None:
        return 0.0
    rest = _turned(bias, arc.first) - _offset(bias, arc)  # no further from the middle at any other position
    return float(rest.unflatten(1, (2, -1)).norm(dim=1).max())


def _turned(bias: Tensor, rope: Tensor) -> Tensor:
    """Keys (num_kv_heads, head_dim) at the position whose rope (2, head_dim) is given."""
    return bias * rope[0] + bias.roll(bias.shape[1] // 2, 1) * rope[1]
