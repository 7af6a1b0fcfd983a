"""What a config.json may say, and the errors for everything else."""

import pytest

from tests.models.loaded_models import GPT2, LLAMA, edit_config, load


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


def test_eos_tokens(folder):
    assert load(folder).config.eos_token_ids == ()
    edit_config(folder, eos_token_id=5)
    assert load(folder).config.eos_token_ids == (5,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert load(folder).config.eos_token_ids == (5, 6)
