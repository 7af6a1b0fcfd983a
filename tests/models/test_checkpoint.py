"""Files of weights, read and written: every tensor once, under the names that transformers gives."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from framework.models.checkpoint import write_checkpoint
from framework.models.config import config_json
from tests.models.checkpoints import MODEL_NAMES, make_hf_model
from tests.models.loaded_models import GPT2, LLAMA, load, logits


def test_old_style_names_and_rope(tmp_path):
    """rope_theta and rope_scaling of transformers 4; constants and a copy of tied weights among the tensors."""
    oracle = make_hf_model("llama")
    oracle.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors")
    tokens = torch.arange(90)
    torch.testing.assert_close(logits(load(tmp_path), tokens), oracle(tokens[None]).logits[0], atol=2e-4, rtol=2e-4)


def test_gpt2_of_the_hub_has_no_prefix(tmp_path):
    make_hf_model("gpt2").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    expected = logits(load(tmp_path), torch.arange(9))
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(logits(load(tmp_path), torch.arange(9)), expected)


def test_checkpoint_tensors_name_every_parameter_once():
    """Views that cover the parameters: what loading fills, saving can read back."""
    for config in (LLAMA, LLAMA | {"model_type": "qwen3", "head_dim": 16}, GPT2):
        model = load(weights="random", config=config)
        sizes = [view.numel() for view in model.checkpoint_tensors().values()]
        assert sum(sizes) == sum(one.numel() for one in model.parameters())


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_what_is_written_is_read_by_both(name, tmp_path):
    oracle = make_hf_model(name)
    oracle.save_pretrained(tmp_path / "theirs")
    model = load(tmp_path / "theirs")
    prefix = "transformer." if name.startswith("gpt2") else "model."
    write_checkpoint(tmp_path / "ours", config_json(model.config), model.checkpoint_tensors(), prefix=prefix)
    again = load(tmp_path / "ours")
    assert replace(again.config, checkpoint=None) == replace(model.config, checkpoint=None)
    tokens = torch.arange(90)
    assert torch.equal(logits(again, tokens), logits(model, tokens))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(theirs(tokens[None]).logits, oracle(tokens[None]).logits)


def test_missing_shard(tmp_path):
    make_hf_model("llama").save_pretrained(tmp_path, max_shard_size="60KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    shards[1].unlink()
    with pytest.raises(ValueError, match=f"lacks the shards .'{shards[1].name}'. that model.safetensors.index.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.weight"), "lacks 1 tensors .*k_proj.weight"),
        (lambda tensors: tensors.pop("lm_head.weight"), "lacks 1 tensors of its architecture: lm_head.weight"),
        (lambda tensors: tensors.update({"model.extra": torch.ones(1)}), "'model.extra', which this architecture"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(9)}), r"is \(9,\), config.json says \(48,\)"),
    ],
)
def test_wrong_tensors(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load(folder)
