"""The course's round trip: within half a step, constants exact, and GPT-2's bytes."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from framework.models.config import parse_config
from framework.models.footprint import footprint
from framework.models.loading import build_model
from framework.quantization.zero_point import dequantize_tensor, quantize, quantize_tensor
from tests.models.test_conf import read

TENSORS = arrays("float32", (2, 7), elements=st.floats(-(2.0**126), 2.0**126, width=32, allow_subnormal=False))


def round_trip(values):
    stored, state = quantize_tensor(values)
    assert (stored.dtype, stored.shape) == (torch.uint8, values.shape)
    return dequantize_tensor(stored, state, values.dtype), state[0]


@settings(deadline=None)
@given(TENSORS)
def test_within_half_a_step(values):
    values = torch.from_numpy(values)
    restored, scale = round_trip(values)
    slack = 2e-6 * values.abs().max() + 1e-37
    assert ((restored - values).abs() <= 0.5 * scale + slack).all()


@pytest.mark.parametrize("value", [0.0, 1.0, -3.3, 1e-40, 3e38])
def test_constants_are_exact(value):
    values = torch.full((3, 4), value)
    assert torch.equal(round_trip(values)[0], values)


def test_rounds_to_the_nearest_step_and_keeps_the_ends():
    values = torch.tensor([-1.0, 0.0019, 0.0059, 1.55])  # steps of 0.01
    stored, _ = quantize_tensor(values)
    assert stored.tolist() == [0, 100, 101, 255]


def test_a_single_outlier_flattens_the_rest():
    values = torch.full((100,), 0.01)
    values[7], values[8] = 100.0, 0.0
    restored, _ = round_trip(values)
    assert restored[7] == pytest.approx(100.0)
    assert restored[:7].unique().tolist() == [0.0]


@pytest.mark.slow
def test_gpt2_takes_a_quarter():
    """510 MB → 137 MB in the course, which counts the masks' buffers too."""
    model = build_model(parse_config(read("gpt2")["config"]), torch.float32, "cpu")
    for parameter in model.parameters():
        parameter.zero_()
    num_tensors = len(list(model.parameters()))
    assert footprint(model)["total"] == 4 * 124_439_808
    assert footprint(quantize(model))["total"] == 124_439_808 + 8 * num_tensors
