"""load_model: a decoder with the weights of a checkpoint, or with seeded random weights of a given shape."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from framework.models.checkpoint import (
    HEAD,
    check_tensors,
    fill_parameters,
    find_checkpoint,
    has_own_head,
    read_model_config,
    stored_tensors,
)
from framework.models.config import ModelConfig, check_keys, parse_config
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama

INIT_STD = 0.02
# What a checkpoint may have otherwise than the config written beside its path
FREE_FIELDS = {"max_positions", "max_model_len", "eos_token_ids", "checkpoint"}


def load_model(
    *,
    path: str | None,
    weights: Literal["random", "pretrained"],
    config: Mapping[str, Any] | None,
    dtype: Literal["float32", "float16", "bfloat16"],
    seed: int,
    max_model_len: int | None,
    device: torch.device | str,
) -> Llama | GPT2:
    """A model on `device`, ready for inference.

    `weights="pretrained"` reads `path`, a folder in Hugging Face format or a hub repository; a `config` given beside
    it must have the same shape. `weights="random"` needs `config` (keys of a config.json), or takes the shape from
    `path`; then all matrices are drawn from normal(0, 0.02) with `seed`. `max_model_len` (None: all positions of the
    model) bounds prompt plus output. Raises ValueError for anything missing, unknown or unsupported.
    """
    torch_dtype = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}.get(dtype)
    if torch_dtype is None:
        raise ValueError(f"dtype {dtype!r} must be float32, float16 or bfloat16")
    if weights == "random":
        model = build_model(_random_config(path, config, max_model_len), torch_dtype, device)
        fill_random(model, seed)
    elif weights == "pretrained":
        if path is None:
            raise ValueError("model.weights=pretrained needs model.path: a folder or a hub repository")
        folder = find_checkpoint(path, weights=True)
        parsed = read_model_config(folder, max_model_len)
        if config is not None:
            _check_same_shape(path, parsed, parse_config(config, max_model_len))
        model = _read_model(replace(parsed, checkpoint=str(folder)), folder, torch_dtype, device)
    else:
        raise ValueError(f"weights {weights!r} must be random or pretrained")
    return model


def read_shape(
    *,
    path: str | None,
    weights: Literal["random", "pretrained"],
    config: Mapping[str, Any] | None,
    dtype: str,
    seed: int,
    max_model_len: int | None,
) -> ModelConfig:
    """The config of what `load_model` would load with these keywords; weights are neither read nor made."""
    if weights == "random" or config is not None:
        return _random_config(path, config, max_model_len)
    if path is None:
        raise ValueError("model.weights=pretrained needs model.path: a folder or a hub repository")
    return read_model_config(find_checkpoint(path, weights=False), max_model_len)


def _read_model(config: ModelConfig, folder: Path, dtype: torch.dtype, device: torch.device | str) -> Llama | GPT2:
    """The model of the folder's files, whose sizes are compared before anything is allocated."""
    family = family_of(config)
    stored = stored_tensors(folder, family.prefix)
    if config.tie_embeddings and has_own_head(stored, f"{family.embedding}.weight"):
        warnings.warn(
            f"{folder}/config.json says that the vocabulary head is the embedding table (tie_word_embeddings), and the "
            f"files hold another one ({HEAD}), which is used, as transformers does",
            stacklevel=3,
        )
        config = replace(config, tie_embeddings=False)
    elif config.tie_embeddings:
        stored.pop(HEAD, None)
    shapes = {name: tensor.shape for name, tensor in _on_meta(config).checkpoint_tensors().items()}
    check_tensors(stored, shapes, folder)
    model = build_model(config, dtype, device)
    fill_parameters(model.checkpoint_tensors(), stored)
    return model


def family_of(config: ModelConfig) -> type[Llama] | type[GPT2]:
    return GPT2 if config.model_type == "gpt2" else Llama


def _on_meta(config: ModelConfig) -> Llama | GPT2:
    with torch.device("meta"):
        return family_of(config)(config)


def build_model(config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> Llama | GPT2:
    """The model with unset parameters, which need no gradient."""
    model = _on_meta(config).to(dtype)
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    try:
        model = model.to_empty(device=device).requires_grad_(False).eval()
    except torch.OutOfMemoryError as error:
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        raise ValueError(
            f"the model's weights take {num_bytes / 2**30:.1f} GiB; {device} has {free_bytes / 2**30:.1f} of "
            f"{total_bytes / 2**30:.1f} GiB free"
        ) from error
    except RuntimeError as error:
        if torch.device(device).type != "cpu":
            raise
        raise ValueError(
            f"the model's weights take {num_bytes / 2**30:.1f} GiB, which {device} does not have"
        ) from error
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    if isinstance(model, Llama):
        model.reset_rope()
    return model


def fill_random(model: Llama | GPT2, seed: int) -> None:
    """Matrices from normal(0, 0.02), norms at 1, biases at 0; drawn on the model's own device."""
    generator = torch.Generator(model.embed_tokens.weight.device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, INIT_STD, generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def _random_config(path: str | None, config: Mapping[str, Any] | None, max_model_len: int | None) -> ModelConfig:
    if config is not None:
        check_keys(config)
        return parse_config(config, max_model_len)
    if path is None:
        raise ValueError("model.weights=random needs model.config (the shape), or model.path to read it from")
    return read_model_config(find_checkpoint(path, weights=False), max_model_len)


def _check_same_shape(path: str, found: ModelConfig, expected: ModelConfig) -> None:
    names = [field.name for field in fields(ModelConfig) if field.name not in FREE_FIELDS]
    pairs = [(name, getattr(found, name), getattr(expected, name)) for name in names]
    different = [f"{name} {there!r}, not {here!r}" for name, there, here in pairs if there != here]
    if different:
        raise ValueError(
            f"the checkpoint {path!r} differs from model.config: {'; '.join(different)}. "
            "Use model=local or model=hub, which take the shape from the checkpoint"
        )
