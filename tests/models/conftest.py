"""The folder of a small checkpoint."""

import pytest

from tests.models.checkpoints import make_hf_model


@pytest.fixture
def folder(tmp_path):
    """A saved llama with an lm_head of its own."""
    make_hf_model("llama_biased").save_pretrained(tmp_path)
    return tmp_path
