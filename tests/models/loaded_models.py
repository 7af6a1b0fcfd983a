"""Loads small models, edits their config.json, and gives a prompt's logits."""

import json

import torch

from framework.kernels.attention import plain_attention
from framework.models.loading import load_model
from tests.models.checkpoints import GPT2_SHAPE, SHAPE

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
    shape["windows"] = model.config.layer_windows
    attention = plain_attention(length, length, 0 * length, None, **shape, device=torch.device("cpu"))
    return model.logits(model(tokens, torch.arange(len(tokens)), attention))


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
