"""Small random models of both families."""

from framework.models.loading import load_model

LLAMA = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": True,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 97,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
    "tie_word_embeddings": False,
}
CONFIGS = {"llama": LLAMA, "gpt2": GPT2}


def make_model(name, dtype="float32", device="cpu"):
    """Weights five times as large as load_model's: else every layer adds next to nothing."""
    given = {"path": None, "weights": "random", "config": CONFIGS[name], "seed": 0, "max_model_len": None}
    model = load_model(**given, dtype=dtype, device=device)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(5.0)
    return model
