"""Llama, Mistral, Qwen2 and Qwen3: logits equal transformers'."""

import pytest

from tests.models.checkpoints import MODEL_NAMES
from tests.models.oracle import check_logits


@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if "gpt2" not in name])
def test_logits_equal_transformers(name, tmp_path):
    check_logits(name, tmp_path)
