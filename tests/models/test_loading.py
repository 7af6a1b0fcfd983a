"""load_model: what a checkpoint may be, what random weights are, and the errors for everything else."""

import huggingface_hub
import pytest
import torch

from framework.paths import ROOT
from tests.models.checkpoints import make_hf_model
from tests.models.loaded_models import GPT2, LLAMA, load, logits


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_half_precision_is_near_float32(name, dtype, tolerance, tmp_path):
    make_hf_model(name).save_pretrained(tmp_path)
    tokens = torch.arange(60)
    exact = logits(load(tmp_path), tokens)
    rounded = logits(load(tmp_path, dtype=dtype), tokens)
    assert rounded.dtype == getattr(torch, dtype)
    assert (rounded.float() - exact).norm() < tolerance * exact.norm()


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


def test_bad_arguments():
    with pytest.raises(ValueError, match="dtype 'fp16' must be float32, float16 or bfloat16"):
        load(weights="random", config=GPT2, dtype="fp16")
    with pytest.raises(ValueError, match="weights 'zero' must be random or pretrained"):
        load(weights="zero", config=GPT2)
    with pytest.raises(ValueError, match="pretrained needs model"):
        load()
    with pytest.raises(ValueError, match="max_model_len 257 must be from 1 to the model's 256 positions"):
        load(weights="random", config=GPT2, max_model_len=257)


def test_the_hub_out_of_reach(monkeypatch, tmp_path):
    """The same error whatever huggingface_hub raises: no network, unknown repository, or no valid name."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for path in ("some-org/some-model", tmp_path / "no" / "such" / "folder"):
        with pytest.raises(
            ValueError, match=r"no local folder .* use model\.weights=random .* model=local model\.path=D"
        ):
            load(path)
