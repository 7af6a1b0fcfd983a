"""An adapter's base model against the served one: refused where names tell, a warning where one may be a copy's."""

import json
import warnings

import pytest
import torch

from framework.lora.adapter_file import save_adapter
from framework.lora.adapters import RandomAdapters, SavedAdapters
from framework.lora.base_model import base_name, check_base
from framework.lora.layout import make_layout
from framework.models.loading import load_model
from framework.paths import ROOT
from tests.models.checkpoints import make_hf_model

CACHE = "/root/.cache/huggingface/hub/models--"
SERVED = f"{CACHE}meta-llama--Llama-3.1-8B/snapshots/0e9e39f"


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        (SERVED, "meta-llama/Llama-3.1-8B"),
        (f"{CACHE}gpt2/snapshots/607a30d/", "gpt2"),
        (str(ROOT / "models/tiny"), "models/tiny"),
        ("/elsewhere/tiny", "/elsewhere/tiny"),
    ],
)
def test_the_name_that_is_written(checkpoint, name):
    assert base_name(checkpoint) == name


@pytest.mark.parametrize(
    ("named", "checkpoint"),
    [
        ("", SERVED),
        ("meta-llama/Llama-3.1-8B", None),  # random weights are no model's
        ("meta-llama/llama-3.1-8b", SERVED),
        ("unsloth/Llama-3.1-8B", SERVED),  # a mirror
        ("/data/Llama-3.1-8B", SERVED),
        (SERVED, "/data/Llama-3.1-8B"),
        ("models/tiny", str(ROOT / "models/tiny")),
        (str(ROOT / "models/../models/tiny"), str(ROOT / "models/tiny")),
    ],
)
def test_what_may_be_the_same_is_served(named, checkpoint):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_base("one", named, checkpoint)


@pytest.mark.parametrize(
    ("named", "checkpoint"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", SERVED),
        (f"{CACHE}mistralai--Mistral-7B/snapshots/1", SERVED),
        ("models/adapters", str(ROOT / "models/tiny")),  # two folders that are here
    ],
)
def test_two_models_that_are_known_are_refused_with_both_names(named, checkpoint):
    with pytest.raises(ValueError, match=r"adapter 'one' belongs to another base model: '.*', and '.*' is served"):
        check_base("one", named, checkpoint)


@pytest.mark.parametrize(
    ("named", "checkpoint"),
    [
        ("meta-llama/Llama-3.1-8B", str(ROOT / "models/tiny")),  # may be a copy under another name
        ("/gone/base", str(ROOT / "models/tiny")),
        ("/gone/base", SERVED),
    ],
)
def test_what_may_be_a_copy_is_a_warning(named, checkpoint):
    with pytest.warns(UserWarning, match=r"adapters of the base model '.*' are served on '.*'"):
        check_base("one", named, checkpoint)


def test_an_adapter_that_is_saved_names_its_base_and_is_refused_on_another_of_the_same_shape(tmp_path):
    options = {"weights": "pretrained", "config": None, "dtype": "float32", "seed": 0, "max_model_len": None}
    layouts = []
    for name in ("this", "that"):
        make_hf_model("llama").save_pretrained(tmp_path / name)
        model = load_model(path=str(tmp_path / name), **options, device="cpu")
        layouts.append(make_layout(model, None))
    this, that = layouts
    save_adapter(tmp_path / "one", RandomAdapters(ranks=[2]).load("one", this, torch.float32), this, alpha=2.0)
    config = json.loads((tmp_path / "one/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "this")
    source = SavedAdapters(path=str(tmp_path))
    assert source.check("one", this) == 2
    for call in (lambda: source.check("one", that), lambda: source.load("one", that, torch.float32)):
        with pytest.raises(ValueError, match=r"adapter 'one' belongs to another base model: '.*/this', and '.*/that'"):
            call()
