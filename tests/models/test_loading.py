"""load_model: what a checkpoint may be, what random weights are, and the errors for everything else."""

import json
from dataclasses import replace

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from framework.kernels.attention import plain_attention
from framework.models.checkpoint import write_checkpoint
from framework.models.config import config_json
from framework.models.loading import load_model
from framework.paths import ROOT
from tests.models.checkpoints import GPT2_SHAPE, MODEL_NAMES, SHAPE, make_hf_model

LLAMA = {"model_type": "llama", **{key: value for key, value in SHAPE.items() if key != "bos_token_id"}}
GPT2 = {"model_type": "gpt2", **GPT2_SHAPE}


def load(path=None, weights="pretrained", config=None, dtype="float32", seed=0, max_model_len=None, device="cpu"):
    path = None if path is None else str(path)
    return load_model(
        path=path, weights=weights, config=config, dtype=dtype, seed=seed, max_model_len=max_model_len, device=device
    )


def logits(model, tokens):
    """(num_tokens, vocab_size) of one whole prompt."""
    length = torch.tensor([len(tokens)]).numpy()
    group = model.config.num_heads // model.config.num_kv_heads
    shape = {"block_size": 1, "num_queries_per_kv": group, "dtype": model.norm.weight.dtype}
    attention = plain_attention(length, length, 0 * length, None, **shape, device=torch.device("cpu"))
    return model.logits(model(tokens, torch.arange(len(tokens)), attention))


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def folder(tmp_path):
    """A saved llama with an lm_head of its own."""
    make_hf_model("llama_biased").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_logits_equal_transformers(name, tmp_path):
    oracle = make_hf_model(name)
    oracle.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = load(tmp_path)
    tokens = torch.arange(90)
    expected = oracle(tokens[None]).logits[0]
    torch.testing.assert_close(logits(model, tokens), expected, atol=2e-4, rtol=2e-4)
    assert model.config.checkpoint == str(tmp_path)
    assert (
        (model.lm_head.weight is model.embed_tokens.weight)
        == model.config.tie_embeddings
        == oracle.config.tie_word_embeddings
    )
    assert sum(one.numel() for one in model.parameters()) == sum(one.numel() for one in oracle.parameters())


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_half_precision_is_near_float32(name, dtype, tolerance, tmp_path):
    make_hf_model(name).save_pretrained(tmp_path)
    tokens = torch.arange(60)
    exact = logits(load(tmp_path), tokens)
    rounded = logits(load(tmp_path, dtype=dtype), tokens)
    assert rounded.dtype == getattr(torch, dtype)
    assert (rounded.float() - exact).norm() < tolerance * exact.norm()


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


def test_a_folder_of_the_repository_is_found_from_anywhere(folder, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr("framework.paths.ROOT", folder.parent)
    assert load(folder.name).config.checkpoint == str(folder)
    assert (ROOT / "run.py").exists()


def test_random_weights_are_seeded():
    first, same, other = (load(weights="random", config=GPT2, seed=seed) for seed in (1, 1, 2))
    pairs = zip(first.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(first.embed_tokens.weight, other.embed_tokens.weight)
    weight = first.layers[0].up_proj.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert first.layers[0].up_proj.bias.count_nonzero() == 0
    assert torch.equal(first.norm.weight, torch.ones(48))
    assert not any(one.requires_grad for one in first.parameters())
    assert first.config.checkpoint is None


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("config", [LLAMA, GPT2])
def test_random_weights_are_the_same_numbers_in_every_dtype(config, device):
    """So that a model in half precision can be compared with the same one in float32."""
    exact = load(weights="random", config=config, device=device)
    for dtype in ("bfloat16", "float16"):
        rounded = load(weights="random", config=config, dtype=dtype, device=device)
        for ours, theirs in zip(rounded.parameters(), exact.parameters(), strict=True):
            assert torch.equal(ours, theirs.to(ours.dtype))


def test_random_weights_take_the_shape_of_a_folder(folder):
    (folder / "model.safetensors").unlink()
    model = load(folder, weights="random")
    assert (model.config.num_kv_heads, model.config.head_dim, model.config.checkpoint) == (2, 16, None)


def test_config_beside_a_checkpoint_must_agree(folder):
    same = LLAMA | {"head_dim": 16, "attention_bias": True, "mlp_bias": True}
    assert load(folder, config=same).config.qkv_bias
    with pytest.raises(ValueError, match=r"num_layers 3, not 2; norm_eps .* Use model=local or model=hub"):
        load(folder, config=same | {"num_hidden_layers": 2, "rms_norm_eps": 1e-5})


def test_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no weights: expected model\.safetensors or model\.safetensors\.index"):
        load(folder)


def test_folder_without_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load(folder)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "'mixtral' is not supported; supported: llama, mistral, qwen2, qwen3, gpt2"),
        ({"quantization_config": {"quant_method": "gptq"}}, "the checkpoint is quantized"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn' is not supported; supported: default, llama3"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "llama3 rope scaling needs .*'factor'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; supported: silu"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers='3'; it must be an integer"),
        ({"num_key_value_heads": 4}, "num_key_value_heads 4 must divide 6"),
    ],
)
def test_unsupported_checkpoints(folder, change, message):
    edit_config(folder, **change)
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LLAMA | {"num_layers": 3}, r"unknown keys \['num_layers'\]; allowed: .*'num_hidden_layers'"),
        ({key: LLAMA[key] for key in LLAMA if key != "vocab_size"}, "of type 'llama' lacks 'vocab_size'"),
        ({key: LLAMA[key] for key in LLAMA if key != "model_type"}, "model_type None is not supported"),
        (LLAMA | {"model_type": "qwen3"}, "needs head_dim"),
        (GPT2 | {"n_head": 5}, "n_embd 48 must be a multiple of n_head 5"),
        (GPT2 | {"activation_function": "relu"}, "activation_function='relu'"),
        (None, "needs model.config"),
    ],
)
def test_bad_random_shapes(config, message):
    with pytest.raises(ValueError, match=message):
        load(weights="random", config=config)


def test_bad_arguments():
    with pytest.raises(ValueError, match="dtype 'fp16' must be float32, float16 or bfloat16"):
        load(weights="random", config=GPT2, dtype="fp16")
    with pytest.raises(ValueError, match="weights 'zero' must be random or pretrained"):
        load(weights="zero", config=GPT2)
    with pytest.raises(ValueError, match="pretrained needs model"):
        load()
    with pytest.raises(ValueError, match="max_model_len 257 must be from 1 to the model's 256 positions"):
        load(weights="random", config=GPT2, max_model_len=257)


@pytest.mark.parametrize(
    "changes", [{"model_type": "mistral"}, {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64}]
)
def test_sliding_window_bounds_the_context(changes):
    config = LLAMA | {"max_position_embeddings": 8192} | changes
    window = config.get("sliding_window", 4096)
    with pytest.raises(ValueError, match=f"sliding window of {window} .*max_model_len={window} or less .now 8192"):
        load(weights="random", config=config)
    assert load(weights="random", config=config, max_model_len=window).config.max_model_len == window
    assert load(weights="random", config=config | {"sliding_window": None}).config.max_model_len == 8192


def test_the_hub_out_of_reach(monkeypatch, tmp_path):
    """The same error whatever huggingface_hub raises: no network, unknown repository, or no valid name."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for path in ("some-org/some-model", tmp_path / "no" / "such" / "folder"):
        with pytest.raises(
            ValueError, match=r"no local folder .* use model\.weights=random .* model=local model\.path=D"
        ):
            load(path)


def test_eos_tokens(folder):
    assert load(folder).config.eos_token_ids == ()
    edit_config(folder, eos_token_id=5)
    assert load(folder).config.eos_token_ids == (5,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert load(folder).config.eos_token_ids == (5, 6)
