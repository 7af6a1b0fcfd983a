"""Small checkpoints whose configs or weights are unusual, with transformers' greedy tokens (what users reported)."""

import json
import warnings

import torch
import transformers

from tests.models.checkpoints import greedy

PROMPT, NUM_TOKENS = [1, 2, 3, 4, 5], 12
CHANGES = {
    "plain": {},
    "tied_own_head": {"tie_word_embeddings": True},
    "rope_both": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    "nan_weight": {},
}
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
}
NAN_TENSOR = "model.layers.1.mlp.down_proj.weight"


def make_unusual(name, folder):
    """Write the checkpoint; returns the tokens that transformers appends to PROMPT."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.12)
        if name == "nan_weight":
            model.get_parameter(NAN_TENSOR)[3, 5] = torch.nan
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | CHANGES[name]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return greedy(transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), PROMPT, NUM_TOKENS)
