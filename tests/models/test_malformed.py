"""Seeded malformed files: a model or an adapter either loads, or one short line names what is wrong."""

import copy
import json
import shutil
import warnings

import numpy as np
import pytest
import torch

from framework.lora.adapter_file import save_adapter
from framework.lora.adapters import RandomAdapters, SavedAdapters
from framework.lora.layout import make_layout
from tests.models.checkpoints import make_hf_model
from tests.models.loaded_models import load

NASTY = [
    *(None, True, False, 0, -1, 1, 2, 3, 15, 1e9, 10**9, 10**400, 0.5, -0.0, float("nan"), float("inf"), -1e308),
    *("", "3", "x" * 10**6, "../../etc/passwd", "\0", "é", [], [1], [None], [[1]], {}, {"a": 1}, {"rope_type": "yarn"}),
    *({"rope_type": "linear", "factor": 0}, {"type": "llama3"}, {"rope_theta": "1"}, [{}], [1, "2", None]),
]
FILES = ["config.json", "generation_config.json", "model.safetensors.index.json", "adapters/one/adapter_config.json"]
MAX_LINE = 600


@pytest.fixture(scope="module", params=["llama", "mistral_window", "qwen2_window", "gpt2"])
def whole(request, tmp_path_factory):
    """A checkpoint in several shards, with an adapter in its folder adapters/one."""
    folder = tmp_path_factory.mktemp(request.param)
    make_hf_model(request.param).save_pretrained(folder, max_shard_size="60KB")
    layout = make_layout(load(folder), None)
    rows = RandomAdapters(ranks=[3]).load("one", layout, torch.float32)
    save_adapter(folder / "adapters/one", rows, layout, alpha=3.0)
    return folder


def mutate(value, rng):
    """One key of the object, at any depth, takes another value, goes, or comes."""
    keys = list(value)
    key = keys[rng.integers(len(keys))] if keys and rng.random() < 0.9 else str(NASTY[rng.integers(len(NASTY))])[:30]
    if isinstance(value.get(key), dict) and value[key] and rng.random() < 0.7:
        mutate(value[key], rng)
    elif rng.random() < 0.1:
        value.pop(key, None)
    else:
        value[key] = copy.deepcopy(NASTY[rng.integers(len(NASTY))])


def damage(path, rng):
    """Bytes are flipped, cut off or repeated."""
    content = bytearray(path.read_bytes())
    place = int(rng.integers(len(content)))
    kind = rng.integers(4)
    if kind == 0:
        content[place] ^= 1 << rng.integers(8)
    elif kind == 1:
        del content[place:]
    elif kind == 2:
        content[place:place] = content[:place]
    else:
        content[:8] = rng.integers(0, 256, 8, dtype=np.uint8).tobytes()
    path.write_bytes(content)


def use(folder):
    """Load everything; the message of the error, or none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = load(folder)
            layout = make_layout(model, None)
            SavedAdapters(path=str(folder / "adapters")).check("one", layout)
    except ValueError as error:
        return str(error)
    return None


def check(message):
    assert message is None or (len(message) <= MAX_LINE and "\n" not in message), message[:1000]


@pytest.mark.slow
@pytest.mark.parametrize("num_cases", [12, pytest.param(60, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("file", FILES)
def test_any_value_of_any_key(whole, tmp_path, file, num_cases):
    rng = np.random.default_rng(FILES.index(file))
    messages = set()
    for index in range(num_cases):
        folder = tmp_path / str(index)
        shutil.copytree(whole, folder)
        value = json.loads((folder / file).read_text()) if (folder / file).exists() else {"eos_token_id": 1}
        for _ in range(rng.integers(1, 4)):
            mutate(value, rng)
        (folder / file).write_text(json.dumps(value))
        messages.add(message := use(folder))
        check(message)
        shutil.rmtree(folder)
    assert len(messages) > min(5, num_cases // 5)


@pytest.mark.slow
@pytest.mark.parametrize("num_cases", [20, pytest.param(80, marks=pytest.mark.nightly)])
def test_damaged_bytes(whole, tmp_path, num_cases):
    rng = np.random.default_rng(0)
    for index in range(num_cases):
        folder = tmp_path / str(index)
        shutil.copytree(whole, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        damage(files[rng.integers(len(files))], rng)
        check(use(folder))
        shutil.rmtree(folder)
