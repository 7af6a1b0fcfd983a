"""Fixtures shared by the tests: a model so small that a whole study takes seconds."""

import pytest


@pytest.fixture
def smallest() -> list[str]:
    """Overrides that make a study quick: two layers of 32 channels, few and short requests."""
    return [
        "model.config={model_type: llama, vocab_size: 256, hidden_size: 32, intermediate_size: 64, "
        "num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16, "
        "max_position_embeddings: 512, tie_word_embeddings: true}",
        "engine.kv_cache_bytes=1000000",
        "trace.num_requests=6",
        "trace.max_prompt_tokens=16",
        "trace.max_output_tokens=4",
        "tracking=none",
    ]
