"""Components of arms and of servers: keywords that change, calls that replace, and what a model is made of."""

from functools import partial

import pytest
import torch

from framework.study.arms import resolve_arms
from framework.study.parts import resolve_component
from tests.study.fake_study import DEFAULTS, load_fake_model


def test_a_model_is_loaded_then_quantized_then_given_room_for_adapters():
    changes = {"quantization": lambda model: f"quantized {model}", "lora": lambda model: f"{model} with adapters"}
    arm = resolve_arms({"a": changes}, DEFAULTS)["a"]
    assert arm.load_model(torch.device("cpu")) == "quantized a with adapters"


def test_a_component_is_changed_or_replaced_and_names_its_place_where_it_is_none():
    resolve = partial(resolve_component, "arms.a.servers.decode", defaults=DEFAULTS, names=("model", "num"))
    assert resolve("model", {"name": "b"}).keywords == {"name": "b"}
    other = partial(load_fake_model, name="c")
    assert resolve("model", other) is other
    assert resolve("num", 3) == 3
    with pytest.raises(ValueError, match=r"unknown component 'models' in arms.a.servers.decode; did you mean 'model'"):
        resolve("models", {})
    with pytest.raises(ValueError, match=r"unknown key 'size' in arms.a.servers.decode.model"):
        resolve("model", {"size": 7})
