"""What a config.json may say, and the errors for everything else."""

import pytest

from framework.models.config import parse_config
from tests.models.loaded_models import GPT2, LLAMA, edit_config, load


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "'mixtral' is not supported; supported: llama, mistral, qwen2, qwen3, gpt2"),
        ({"quantization_config": {"quant_method": "gptq"}}, "the checkpoint is quantized"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope' is not supported; supported: default, linear"),
        (
            {"rope_parameters": {"rope_type": "dynamic"}},
            "rope_type 'dynamic' is not supported: it turns every key anew",
        ),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_type .'yarn'. is not supported"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "config.json: llama3 rope lacks 'factor'"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "yarn rope has factor='4'; it should be a valid number"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_parameters": {"type": "linear", "factor": 4.0}},
            "config.json has rope_scaling=.* and rope_parameters=.*leave one out",
        ),
        ({"rope_theta": 1e4, "rope_scaling": {"rope_theta": 1e6}}, "several rope_theta: .*leave one"),
        ({"rope_parameters": None, "rope_theta": float("nan")}, "rope_theta=nan; it should be a finite number"),
        ({"rope_parameters": None, "rope_theta": 0}, "rope_theta=0.0; it should be greater than 1"),
        ({"rope_parameters": {"rope_theta": [1]}}, "rope_theta=.1.; it should be a valid number"),
        ({"rope_parameters": [1]}, "rope_parameters=.1.; it should be a valid dictionary"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps=-1e-06; it should be greater than or equal to 0"),
        ({"eos_token_id": 97}, r"eos_token_id=97; it should be below vocab_size=97"),
        ({"eos_token_id": [5, -1]}, r"eos_token_id.1=-1; it should be greater than or equal to 0"),
        ({"eos_token_id": True}, r"eos_token_id.0=True; it should be a valid integer"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000; it should be less than or equal to 1000"),
        ({"hidden_size": 48.5}, "hidden_size=48.5; it should be a valid integer"),
        ({"vocab_size": True}, "vocab_size=True; it should be a valid integer"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes'; it should be a valid boolean"),
        ({"head_dim": 15}, "head_dim=15; it should be even"),
        ({"model_type": "x" * 9_000_000}, "model_type 'x{70,79}… is not supported"),
        ({"hidden_act": "x" * 9_000_000}, "hidden_act='x{70,79}…; it should be 'silu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; it should be 'silu'"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers='3'; it should be a valid integer"),
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
        ({key: LLAMA[key] for key in LLAMA if key != "vocab_size"}, "model.config lacks 'vocab_size'"),
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
    ("changes", "windows"),
    [
        ({"model_type": "mistral"}, (4096,) * 3),
        ({"model_type": "mistral", "sliding_window": None}, (None,) * 3),
        ({"model_type": "qwen2", "sliding_window": 64}, (None,) * 3),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64}, (None,) * 3),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2},
            (None, None, 64),
        ),
        (
            {
                "model_type": "qwen3",
                "head_dim": 16,
                "use_sliding_window": True,
                "sliding_window": 64,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (64, None, 64),
        ),
    ],
)
def test_which_layers_have_a_sliding_window(changes, windows):
    config = parse_config(LLAMA | {"max_position_embeddings": 8192} | changes)
    assert config.windows == windows
    assert config.has_window == any(windows)
    short = parse_config(LLAMA | {"max_position_embeddings": 8192} | changes, max_model_len=50)
    assert (short.windows, short.layer_windows, short.has_window) == (windows, (None,) * 3, False)


def test_layer_types_are_one_per_layer():
    changes = {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["full_attention"]}
    with pytest.raises(ValueError, match="1 layer_types; num_hidden_layers is 3"):
        parse_config(LLAMA | changes)


def test_eos_tokens(folder):
    assert load(folder).config.eos_token_ids == ()
    edit_config(folder, eos_token_id=5)
    assert load(folder).config.eos_token_ids == (5,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert load(folder).config.eos_token_ids == (5, 6)
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 600]}')
    with pytest.raises(ValueError, match=r"generation_config.json has eos_token_id=600; it should be below"):
        load(folder)


def test_rope_keys_that_nobody_uses_are_said():
    rope = {"rope_type": "linear", "factor": 2.0, "finetuned": True}
    with pytest.warns(UserWarning, match="rope_type 'linear' does not use .'finetuned'."):
        parse_config(LLAMA | {"rope_parameters": rope})
