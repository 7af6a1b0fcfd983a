"""Checkpoints in Hugging Face's format: finding the folder, its config.json, filling a model's parameters, writing.

Headers are checked before a model is made. Tensors are read one at a time, so that loading needs little more memory
than the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file
from torch import Tensor

from framework.checks import shown
from framework.models.config import ModelConfig, parse_config
from framework.models.config_file import TokenIds, check_tokens, checked
from framework.models.files import FLOATS, inside, opened_tensors, read_json
from framework.paths import locate

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILES = ["*.json", "*.txt", "*.jinja", "tokenizer.model"]
WEIGHT_FILES = ["model*.safetensors"]  # some repositories hold a second copy under other names
HEAD = "lm_head.weight"
UNUSED_SUFFIXES = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # constants some old files carry


class GenerationFile(BaseModel):
    model_config = ConfigDict(strict=True)

    eos_token_id: TokenIds = ()


class IndexFile(BaseModel):
    model_config = ConfigDict(strict=True)

    weight_map: dict[str, str]


def find_checkpoint(path: str, *, weights: bool) -> Path:
    """The folder that `locate` finds, or the hub repository of this name, downloaded.

    `weights` says whether its weights are needed. Raises ValueError if it is none of these, or if the hub cannot be
    reached and its cache lacks the files.
    """
    folder = locate(path)
    if folder.is_dir():
        return folder
    patterns = CONFIG_FILES + (WEIGHT_FILES if weights else [])
    try:
        return Path(snapshot_download(path, allow_patterns=patterns))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"{path!r} is no local folder and could not be downloaded from the Hugging Face hub "
            f"({type(error).__name__}). Without a network use model.weights=random for the same shape, or "
            "model=local model.path=DIR for a folder with config.json and safetensors"
        ) from error


def read_model_config(folder: Path, max_model_len: int | None) -> ModelConfig:
    """The folder's config.json, with `eos_token_id` from generation_config.json where that names one."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; it must be a model folder in Hugging Face format")
    config = parse_config(read_json(folder / "config.json"), max_model_len, str(folder / "config.json"))
    generation = folder / "generation_config.json"
    if generation.is_file():
        eos = checked(GenerationFile, read_json(generation), str(generation)).eos_token_id
        check_tokens(eos, config.vocab_size, str(generation))
        config = replace(config, eos_token_ids=eos or config.eos_token_ids)
    return config


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in one of a folder's files, of which only the header was read."""

    file: Path
    name: str  # in the file
    shape: tuple[int, ...]
    dtype: str  # safetensors' name of it

    def read(self) -> Tensor:
        with opened_tensors(self.file) as file:
            tensor: Tensor = file.get_tensor(self.name)
            return tensor


def stored_tensors(folder: Path, prefix: str) -> dict[str, StoredTensor]:
    """The tensors of a folder's safetensors files by their names less `prefix`, less the constants of old files.

    Of a tensor that several files hold, the one counts that the index names. Raises ValueError for a folder without
    weights, a missing or broken file, and an index that names another file or tensor than there is.
    """
    found: dict[str, StoredTensor] = {}
    for path, listed in shards(folder).items():
        with opened_tensors(path) as file:
            names = set(file.keys())
            if listed is not None and not listed <= names:
                raise ValueError(f"{path} lacks {shown(min(listed - names))}, which {INDEX_FILE} says it holds")
            for full_name in sorted(names if listed is None else listed):
                part = file.get_slice(full_name)
                name = full_name.removeprefix(prefix)
                if name in found:
                    raise ValueError(f"{path} holds {shown(name)} twice: as {full_name!r} and {found[name].name!r}")
                if not name.endswith(UNUSED_SUFFIXES):
                    found[name] = StoredTensor(path, full_name, tuple(part.get_shape()), part.get_dtype())
    return found


def shards(folder: Path) -> dict[Path, set[str] | None]:
    """The folder's safetensors files, each with the tensors that the index says it holds; None: all it has."""
    index = folder / INDEX_FILE
    if index.is_file():
        weight_map = checked(IndexFile, read_json(index), str(index)).weight_map
        files: dict[Path, set[str] | None] = {}
        for name in sorted(set(weight_map.values())):
            if PurePath(name).name != name:
                raise ValueError(f"{index} names the shard {shown(name)}, which is no file of its folder")
            files[inside(folder, name)] = {tensor for tensor, shard in weight_map.items() if shard == name}
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise ValueError(f"{folder} lacks the shards {shown(missing)} that {INDEX_FILE} lists")
        return files
    if not (folder / SINGLE_FILE).is_file():
        raise ValueError(f"{folder} has no weights: expected {SINGLE_FILE} or {INDEX_FILE}")
    return {folder / SINGLE_FILE: None}


def has_own_head(stored: dict[str, StoredTensor], embeddings: str) -> bool:
    """Whether the files hold a vocabulary head with other numbers than the tensor `embeddings`."""
    head, table = stored.get(HEAD), stored.get(embeddings)
    if head is None or table is None:
        return False
    return head.shape != table.shape or not torch.equal(head.read(), table.read())


def check_tensors(stored: dict[str, StoredTensor], shapes: Mapping[str, torch.Size], folder: Path) -> None:
    """ValueError naming what is missing, unknown, of another shape, or no floating-point numbers."""
    for name, tensor in stored.items():
        if name not in shapes:
            raise ValueError(f"{tensor.file} holds {shown(tensor.name)}, which this architecture does not have")
        if tensor.shape != tuple(shapes[name]):
            expected = tuple(shapes[name])
            raise ValueError(f"{tensor.file}: {tensor.name!r} is {tensor.shape}, config.json says {expected}")
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{tensor.file}: {tensor.name!r} is of {tensor.dtype}; weights are of {', '.join(FLOATS)}")
    missing = sorted(set(shapes) - set(stored))
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} tensors of its architecture: {', '.join(missing[:5])}")


def fill_parameters(targets: dict[str, Tensor], stored: dict[str, StoredTensor]) -> None:
    """Copy the tensors, which check_tensors has seen, into `targets`, views of a model's parameters by the same names.

    Raises ValueError naming a tensor with numbers that are NaN or infinite, be it for the targets' narrower dtype only.
    """
    for path in dict.fromkeys(tensor.file for tensor in stored.values()):
        with opened_tensors(path) as file:
            for name, target in targets.items():
                if stored[name].file == path:
                    target.copy_(file.get_tensor(stored[name].name))
                    if not target.isfinite().all():
                        kind = str(target.dtype).removeprefix("torch.")
                        raise ValueError(f"{path}: {stored[name].name!r} has values that are NaN or infinite as {kind}")


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], *, prefix: str) -> None:
    """config.json and model.safetensors of `tensors`, by checkpoint name less `prefix`, in the dtype they have."""
    folder.mkdir(parents=True, exist_ok=True)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    assert len(dtypes) == 1, dtypes
    (folder / "config.json").write_text(json.dumps(config | {"dtype": dtypes.pop()}, indent=2) + "\n")
    named = {name if name.startswith("lm_head") else prefix + name: tensor for name, tensor in tensors.items()}
    contiguous = {name: tensor.detach().contiguous() for name, tensor in named.items()}
    save_file(contiguous, folder / SINGLE_FILE, metadata={"format": "pt"})
