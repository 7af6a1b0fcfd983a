"""Llama, Mistral, Qwen2 and Qwen3: logits equal transformers', and rope turns as its paper says."""

import math

import pytest
import torch

from framework.models.config import Llama3Scaling
from framework.models.llama import rope_frequencies
from tests.models.checkpoints import MODEL_NAMES
from tests.models.oracle import check_logits


@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if "gpt2" not in name])
def test_logits_equal_transformers(name, tmp_path):
    check_logits(name, tmp_path)


def test_frequencies_fall_from_one_by_equal_factors():
    assert rope_frequencies(10_000.0, 8, None).tolist() == pytest.approx([1.0, 0.1, 0.01, 0.001])


def test_llama3_scaling_slows_long_waves_and_keeps_short_ones():
    scaling = Llama3Scaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    plain, scaled = (rope_frequencies(500_000.0, 128, one).double() for one in (None, scaling))
    wavelengths = 2 * math.pi / plain
    is_long, is_short = wavelengths > 8192, wavelengths < 8192 / 4
    torch.testing.assert_close(scaled[is_short], plain[is_short])
    torch.testing.assert_close(scaled[is_long], plain[is_long] / 8)
    between = (scaled / plain)[~is_long & ~is_short]
    assert len(between) > 3
    assert ((between > 1 / 8) & (between < 1)).all()
    assert (between.diff() < 0).all()
