"""What users reported: the tokens of transformers where they are right, and one line by name where they are not."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.core import Request
from framework.engine.torch_engine import TorchEngine
from tests.engine.torch_engine.hand_schedules import generate
from tests.models.loaded_models import edit_config, load
from tests.models.unusual_checkpoints import NAN_TENSOR, NUM_TOKENS, PROMPT, make_unusual


def tokens(model):
    request = Request(0, 0.0, len(PROMPT), NUM_TOKENS, prompt_token_ids=tuple(PROMPT))
    engine = TorchEngine(model, num_blocks=16, block_size=4)
    engine.begin([request], 1)
    return generate(engine, [request])[0]


def edit_tensors(folder, edit):
    stored = load_file(folder / "model.safetensors")
    edit(stored)
    save_file(stored, folder / "model.safetensors")


@pytest.mark.parametrize("name", ["plain", "rope_both"])
def test_tokens_equal_transformers(name, tmp_path):
    expected = make_unusual(name, tmp_path)
    assert tokens(load(tmp_path)) == expected


def test_a_head_in_the_file_is_used_though_the_config_says_tied(tmp_path):
    expected = make_unusual("tied_own_head", tmp_path)
    with pytest.warns(UserWarning, match=r"the files hold another one .lm_head.weight., which is used"):
        model = load(tmp_path)
    assert not model.config.tie_embeddings
    assert tokens(model) == expected


def test_a_head_equal_to_the_embeddings_takes_no_room(tmp_path, recwarn):
    make_unusual("tied_own_head", tmp_path)
    edit_tensors(
        tmp_path, lambda stored: stored.update({"lm_head.weight": stored["model.embed_tokens.weight"].clone()})
    )
    model = load(tmp_path)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert not [warning for warning in recwarn if "lm_head" in str(warning.message)]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_no_number_is_refused_by_name(value, tmp_path):
    make_unusual("nan_weight", tmp_path)
    edit_tensors(tmp_path, lambda stored: stored[NAN_TENSOR].nan_to_num_(nan=value, posinf=value))
    with pytest.raises(ValueError, match=f"model.safetensors: '{NAN_TENSOR}' has values that are NaN or infinite"):
        load(tmp_path)


def test_a_weight_beyond_the_models_dtype_is_refused_by_name(tmp_path):
    make_unusual("plain", tmp_path)
    edit_tensors(tmp_path, lambda stored: stored[NAN_TENSOR].fill_(70_000.0))
    with pytest.raises(ValueError, match=f"'{NAN_TENSOR}' has values that are NaN or infinite as float16"):
        load(tmp_path, dtype="float16")
    load(tmp_path, dtype="bfloat16")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_are_floating_point(dtype, tmp_path):
    make_unusual("plain", tmp_path)
    edit_tensors(tmp_path, lambda stored: stored.update({NAN_TENSOR: stored[NAN_TENSOR].to(dtype)}))
    with pytest.raises(ValueError, match=f"'{NAN_TENSOR}' is of .*; weights are of F64, F32, F16, BF16"):
        load(tmp_path)


def test_the_index_says_which_shard_counts(tmp_path):
    expected = make_unusual("plain", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    save_file(stored, tmp_path / "model-1.safetensors")
    save_file({NAN_TENSOR: torch.zeros_like(stored[NAN_TENSOR])}, tmp_path / "model-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"

    def write_index(**changes):
        weight_map = dict.fromkeys(stored, "model-1.safetensors") | changes
        index.write_text(json.dumps({"weight_map": weight_map}))

    write_index(**{"lm_head.weight": "model-1.safetensors"})
    assert tokens(load(tmp_path)) == expected
    write_index(**{NAN_TENSOR: "model-2.safetensors"})
    assert tokens(load(tmp_path)) != expected
    write_index(**{"lm_head.weight": "model-2.safetensors"})
    with pytest.raises(ValueError, match=r"model-2.safetensors lacks 'lm_head.weight', which .*index.json says it hol"):
        load(tmp_path)
    for name in ("../elsewhere.safetensors", "/etc/passwd", "sub/model.safetensors"):
        write_index(**{"lm_head.weight": name})
        with pytest.raises(ValueError, match=f"index.json names the shard '{name}', which is no file of its folder"):
            load(tmp_path)
    index.write_text(json.dumps({"weight_map": [1]}))
    with pytest.raises(ValueError, match=r"index.json has weight_map=\[1\]; it should be a valid dictionary"):
        load(tmp_path)
    index.write_text("{")
    with pytest.raises(ValueError, match=r"index.json is no JSON"):
        load(tmp_path)


@pytest.mark.parametrize("change", [{"vocab_size": 2**24}, {"intermediate_size": 2**24}, {"num_hidden_layers": 1000}])
def test_sizes_are_compared_with_the_files_before_anything_is_allocated(change, tmp_path, monkeypatch):
    make_unusual("plain", tmp_path)
    edit_config(tmp_path, **change)
    monkeypatch.setattr("framework.models.loading.build_model", lambda *arguments: pytest.fail("allocated"))
    with pytest.raises(ValueError, match=r"config.json says|lacks \d+ tensors"):
        load(tmp_path)
