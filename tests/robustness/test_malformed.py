"""Malformed configs, traces, checkpoints, adapters and points, from a seed: used as they are, or refused clearly."""

import json
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from framework.catalog import CONF
from framework.checks import MAX_LINE
from framework.config import check
from framework.core import Trace
from framework.lora.adapter_file import save_adapter
from framework.lora.adapters import RandomAdapters, SavedAdapters
from framework.lora.layout import make_layout
from framework.trace.bailian import read_bailian
from framework.trace.files import read_azure, read_burstgpt, read_mooncake, read_table, read_vidur
from tests.models.checkpoints import make_hf_model
from tests.models.loaded_models import LLAMA, load
from tests.robustness.mutations import altered, damaged
from tests.study.fake_study import run_fake_study

pytestmark = pytest.mark.slow
SEEDS = [0, pytest.param(1, marks=pytest.mark.nightly), pytest.param(2, marks=pytest.mark.nightly)]

TRACES = {  # file → reader, header, row
    "own.csv": (
        read_table,
        "arrival_time,num_prompt_tokens,num_output_tokens,adapter_id,priority,prefix_ids\n",
        "{0}.5,60{0},1{0},a{0},{0},{0} 1{0}\n",
    ),
    "azure.csv": (
        read_azure,
        "TIMESTAMP,ContextTokens,GeneratedTokens\n",
        "2023-11-16 18:17:0{0}.9799600,{0}3,{0}1\n",
    ),
    "burst.csv": (
        read_burstgpt,
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n",
        "{0}0,ChatGPT,{0}3,{0},{0}9,Conversation log\n",
    ),
    "vidur.csv": (read_vidur, "arrived_at,num_prefill_tokens,num_decode_tokens\n", "{0}.25,{0}3,{0}1\n"),
    "sessions.csv": (
        read_table,
        "arrival_time,num_prompt_tokens,num_output_tokens,session_id,turn,think_time\n",
        "{0}.5,60{0},1{0},a{0},1,\n",
    ),
    "bailian.jsonl": (
        read_bailian,
        "",
        '{{"chat_id": {0}, "parent_chat_id": -1, "timestamp": {0}.5, "input_length": 2{0}, "output_length": 1{0}, '
        '"type": "text", "turn": 1, "hash_ids": [0, {0}]}}\n',
    ),
    "mooncake.jsonl": (
        read_mooncake,
        "",
        '{{"timestamp": {0}00, "input_length": 60{0}, "output_length": 1{0}, "hash_ids": [0, {0}]}}\n',
    ),
}


def refusal(call: Callable[[], object]) -> str | None:
    """The ValueError's message, whose lines are not too long; None if there is none."""
    try:
        call()
    except ValueError as error:
        message = str(error)
    else:
        return None
    assert message
    assert all(len(line) <= MAX_LINE for line in message.splitlines())
    return message


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", TRACES)
def test_a_trace_file_is_a_trace_or_refused_by_its_path(tmp_path, name, seed):
    reader, header, row = TRACES[name]
    content = (header + "".join(row.format(index) for index in range(6))).encode()
    rng, path, num_refused = np.random.default_rng([seed, 0]), tmp_path / name, 0
    for _ in range(200):
        path.write_bytes(damaged(content, rng))
        message = refusal(lambda: check_trace(reader(path)))
        assert message is None or message.startswith(f"{path}: ")
        num_refused += message is not None
    assert num_refused > 40


def check_trace(trace: Trace) -> None:
    times = [request.arrival_time for request in trace.requests]
    assert np.isfinite(times).all()
    assert times == sorted(times)
    assert times[0] >= 0
    for request in trace.requests:
        assert request.num_prompt_tokens >= 1
        assert request.num_output_tokens >= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_parquet_trace_is_a_trace_or_refused_by_its_path(tmp_path, seed):
    columns = {"arrival_time": [0.0, 1.0], "num_prompt_tokens": [4, 4], "num_output_tokens": [1, 2]}
    path = tmp_path / "own.parquet"
    pd.DataFrame(columns).to_parquet(path)
    rng, content = np.random.default_rng([seed, 1]), path.read_bytes()
    for _ in range(200):
        path.write_bytes(damaged(content, rng))
        message = refusal(lambda: check_trace(read_table(path)))
        assert message is None or message.startswith(f"{path}: ")


def compose(study: str) -> dict:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", [f"experiment={study}"])
        config.output_dir = "x"  # else Hydra would have to tell the study's name
        return OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("study", ["continuous_batching", "multi_lora", "quantization", "generate"])
def test_a_config_fits_what_it_calls_or_is_refused_by_key(study, seed):
    config, rng = compose(study), np.random.default_rng([seed, 2])
    messages = [refusal(lambda: check(altered(config, rng))) for _ in range(100)]
    assert sum(message is not None for message in messages) > 10


def damage(path: Path, rng: np.random.Generator) -> None:
    """Other bytes or, in a JSON file, another value."""
    if path.suffix == ".json" and rng.random() < 0.7:
        path.write_text(json.dumps(altered(json.loads(path.read_text()), rng)))
    else:
        path.write_bytes(damaged(path.read_bytes(), rng))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["llama", "mistral_window", "gpt2"])
def test_a_checkpoint_is_loaded_or_refused_by_its_folder(tmp_path, name, seed):
    whole, rng, num_refused = tmp_path / "whole", np.random.default_rng([seed, 3]), 0
    make_hf_model(name).save_pretrained(whole)
    for round_ in range(60):
        folder = tmp_path / str(round_)
        shutil.copytree(whole, folder)
        damage(folder / ("config.json" if round_ % 3 else "model.safetensors"), rng)
        message = refusal(partial(load, folder))
        shutil.rmtree(folder)
        assert message is None or str(folder) in message
        num_refused += message is not None
    assert num_refused > 20


@pytest.mark.parametrize("seed", SEEDS)
def test_an_adapter_is_loaded_or_refused_by_its_name(tmp_path, seed):
    layout = make_layout(load(config=LLAMA, weights="random"), None)
    source, rng, num_refused = SavedAdapters(path=str(tmp_path)), np.random.default_rng([seed, 4]), 0
    save_adapter(tmp_path / "whole", RandomAdapters(ranks=[4], seed=0).load("x", layout, torch.float32), layout, 8.0)
    for round_ in range(60):
        folder = tmp_path / f"mine{round_}"
        shutil.copytree(tmp_path / "whole", folder)
        damage(folder / ("adapter_config.json" if round_ % 3 else "adapter_model.safetensors"), rng)
        message = refusal(partial(source.load, folder.name, layout, torch.float32))
        shutil.rmtree(folder)
        assert message is None or folder.name in message
        num_refused += message is not None
    assert num_refused > 20


@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_folder_of_points_heals(tmp_path, seed):
    rng = np.random.default_rng([seed, 3])
    whole = run_fake_study(tmp_path, {"only": {}}, [1.0, 2.0]).table()
    for _ in range(12):
        files = sorted(tmp_path.glob("points/*/*"))
        damage(files[int(rng.integers(len(files)))], rng)
        with warnings.catch_warnings(record=True, action="always") as caught:
            table = run_fake_study(tmp_path, {"only": {}}, [1.0, 2.0]).table()
        assert all("is no finished point" in str(warning.message) for warning in caught)
        assert table[["rate", "point"]].equals(whole[["rate", "point"]])
        assert len(pd.read_csv(tmp_path / "points.csv")) == 2
