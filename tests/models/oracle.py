"""Whether a family gives the logits of transformers, from a checkpoint in several files."""

import torch

from tests.models.checkpoints import make_hf_model
from tests.models.loaded_models import load, logits


def check_logits(name, folder):
    oracle = make_hf_model(name)
    oracle.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    model = load(folder)
    tokens = torch.arange(90)
    expected = oracle(tokens[None]).logits[0]
    torch.testing.assert_close(logits(model, tokens), expected, atol=2e-4, rtol=2e-4)
    assert model.config.checkpoint == str(folder)
    assert (
        (model.lm_head.weight is model.embed_tokens.weight)
        == model.config.tie_embeddings
        == oracle.config.tie_word_embeddings
    )
    assert sum(one.numel() for one in model.parameters()) == sum(one.numel() for one in oracle.parameters())
