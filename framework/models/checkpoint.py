"""Checkpoints in Hugging Face's format: finding the folder, its config.json, filling a model's parameters, writing.

Shards are read one tensor at a time, so that loading needs little more memory than the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from framework.paths import locate

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILES = ["*.json", "*.txt", "*.jinja", "tokenizer.model"]
WEIGHT_FILES = ["model*.safetensors"]  # some repositories hold a second copy under other names
UNUSED_SUFFIXES = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # constants some old files carry


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


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, with `eos_token_id` from generation_config.json where that names one."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; it must be a model folder in Hugging Face format")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    generation = folder / "generation_config.json"
    if generation.is_file():
        eos = json.loads(generation.read_text()).get("eos_token_id")
        config["eos_token_id"] = config.get("eos_token_id") if eos is None else eos
    return config


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files. Raises ValueError if it has none or a shard is missing."""
    if (folder / INDEX_FILE).is_file():
        names = set(json.loads((folder / INDEX_FILE).read_text())["weight_map"].values())
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing:
            raise ValueError(f"{folder} lacks the shards {missing} that {INDEX_FILE} lists")
        return [folder / name for name in sorted(names)]
    if not (folder / SINGLE_FILE).is_file():
        raise ValueError(f"{folder} has no weights: expected {SINGLE_FILE} or {INDEX_FILE}")
    return [folder / SINGLE_FILE]


def fill_parameters(targets: dict[str, Tensor], folder: Path, *, prefix: str, is_tied: bool) -> None:
    """Copy the folder's tensors into `targets`, views by checkpoint name less `prefix`.

    Raises ValueError naming tensors that are missing, unknown, or of another shape.
    """
    missing = set(targets)
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as shard:
            for full_name in shard.keys():  # noqa: SIM118 (not a dict)
                name = full_name.removeprefix(prefix)
                if name.endswith(UNUSED_SUFFIXES) or (is_tied and name == "lm_head.weight"):
                    continue
                if name not in targets:
                    raise ValueError(f"{file} holds {full_name!r}, which this architecture does not have")
                tensor = shard.get_tensor(full_name)
                if tensor.shape != targets[name].shape:
                    expected = tuple(targets[name].shape)
                    raise ValueError(f"{file}: {full_name!r} is {tuple(tensor.shape)}, config.json says {expected}")
                targets[name].copy_(tensor)
                missing.discard(name)
    if missing:
        listed = ", ".join(sorted(missing)[:5])
        raise ValueError(f"{folder} lacks {len(missing)} tensors of its architecture: {listed}")


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], *, prefix: str) -> None:
    """config.json and model.safetensors of `tensors`, by checkpoint name less `prefix`, in the dtype they have."""
    folder.mkdir(parents=True, exist_ok=True)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    assert len(dtypes) == 1, dtypes
    (folder / "config.json").write_text(json.dumps(config | {"dtype": dtypes.pop()}, indent=2) + "\n")
    named = {name if name.startswith("lm_head") else prefix + name: tensor for name, tensor in tensors.items()}
    contiguous = {name: tensor.detach().contiguous() for name, tensor in named.items()}
    save_file(contiguous, folder / SINGLE_FILE, metadata={"format": "pt"})
