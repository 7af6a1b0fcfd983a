"""GPT-2: logits equal transformers', with a head of its own or that of the embedding."""

import pytest
import torch

from tests.models.checkpoints import MODEL_NAMES
from tests.models.loaded_models import GPT2, load, logits
from tests.models.oracle import check_logits


@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if "gpt2" in name])
def test_logits_equal_transformers(name, tmp_path):
    check_logits(name, tmp_path)


def test_a_token_does_not_see_those_behind_it():
    model = load(weights="random", config=GPT2)
    whole = logits(model, torch.arange(20))
    torch.testing.assert_close(logits(model, torch.arange(12)), whole[:12], atol=1e-5, rtol=1e-5)
