"""The shapes shipped in conf/model have the parameter counts of the models they are named after."""

import inspect

import pytest
import torch
import yaml

from framework.models.config import check_keys, parse_config
from framework.models.loading import build_model, load_model
from framework.paths import ROOT

FOLDER = ROOT / "conf" / "model"
COUNTS = {
    "tiny": 2_967_808,
    "gpt2": 124_439_808,
    "qwen3_0_6b": 596_049_920,
    "qwen3_8b": 8_190_735_360,
    "llama_1b": 1_235_814_400,
    "llama_8b": 8_030_261_248,
}


def read(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def test_every_file_is_counted_or_takes_a_path():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*COUNTS, "local", "hub"}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count(name):
    config = read(name)["config"]
    check_keys(config)
    model = build_model(parse_config(config), torch.bfloat16, "meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", [*COUNTS, "local", "hub"])
def test_keys_are_the_keywords_of_load_model(name):
    keys = read(name).keys() - {"_target_", "_partial_"}
    assert keys | {"device"} == set(inspect.signature(load_model).parameters)


def test_tiny_loads():
    keywords = {key: value for key, value in read("tiny").items() if not key.startswith("_")}
    model = load_model(**keywords, device="cpu")
    assert (model.config.max_model_len, model.config.qkv_sizes) == (4096, (256, 128, 128))
