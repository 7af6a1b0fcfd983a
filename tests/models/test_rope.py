"""Rope turns as its paper says, and each scaling's frequencies and amplitude are those of transformers."""

import math

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from framework.models.config import parse_config
from framework.models.rope import Llama3Scaling, plain_frequencies, rope_table
from tests.models.checkpoints import LLAMA3_ROPE, SHAPE
from tests.models.loaded_models import LLAMA

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def test_frequencies_fall_from_one_by_equal_factors():
    assert plain_frequencies(10_000.0, 8).tolist() == pytest.approx([1.0, 0.1, 0.01, 0.001])


def test_llama3_scaling_slows_long_waves_and_keeps_short_ones():
    scaling = Llama3Scaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    plain = plain_frequencies(500_000.0, 128).double()
    scaled = scaling.frequencies(500_000.0, 128).double()
    wavelengths = 2 * math.pi / plain
    is_long, is_short = wavelengths > 8192, wavelengths < 8192 / 4
    torch.testing.assert_close(scaled[is_short], plain[is_short])
    torch.testing.assert_close(scaled[is_long], plain[is_long] / 8)
    between = (scaled / plain)[~is_long & ~is_short]
    assert len(between) > 3
    assert ((between > 1 / 8) & (between < 1)).all()
    assert (between.diff() < 0).all()


@pytest.mark.parametrize(
    "rope",
    [
        LLAMA3_ROPE,
        {"rope_type": "linear", "factor": 2.5},
        YARN,
        YARN | {"factor": 0.5},
        YARN | {"attention_factor": 1.3, "truncate": False},
        YARN | {"beta_fast": 8.0, "beta_slow": 2.0, "rope_theta": 500.0},
        YARN | {"mscale": 0.7, "mscale_all_dim": 1.1, "factor": 40},
        {"type": "yarn", "factor": 2.0},
        {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1},
    ],
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_scalings_are_those_of_transformers(rope, key):
    config = LLAMA | {"head_dim": 32, key: rope}
    parsed = parse_config(config)
    theirs = transformers.LlamaConfig(**SHAPE | {"head_dim": 32}, **{key: dict(rope)})
    frequencies, amplitude = ROPE_INIT_FUNCTIONS[parsed_type(rope)](theirs, "cpu")
    scaling = parsed.rope_scaling
    torch.testing.assert_close(scaling.frequencies(parsed.rope_theta, 32), frequencies)
    assert scaling.amplitude == pytest.approx(amplitude)
    table = rope_table(parsed.rope_theta, 32, scaling, 7)
    angles = torch.arange(7)[:, None] * frequencies
    torch.testing.assert_close(table[:, 0, 16:], angles.cos() * amplitude)
    torch.testing.assert_close(table[:, 1, :16], -angles.sin() * amplitude)


def parsed_type(rope):
    return rope.get("rope_type", rope.get("type"))
