"""float8's round trip: within half a step of each number's own binade; zeros and constants, and what outliers cost."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from framework.kernels.fp8 import quantize_fp8

HALF_STEP = 2.0**-4  # of the power of two below a number: e4m3 has three bits after the leading one
HALF_SMALLEST = 2.0**-10  # below 2 ** -6 the steps are 2 ** -9
MATRICES = arrays("float32", (3, 10), elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False))


def round_trip(values):
    quantized, scale = quantize_fp8(values)
    assert (quantized.dtype, quantized.shape, scale.shape) == (torch.float8_e4m3fn, values.shape, (len(values), 1))
    return quantized.float() * scale, scale


@settings(deadline=None)
@given(MATRICES)
def test_within_half_a_step(values):
    values = torch.from_numpy(values)
    restored, scale = round_trip(values)
    assert restored.isfinite().all()
    assert ((restored - values).abs() <= 1.0001 * (HALF_STEP * values.abs() + HALF_SMALLEST * scale)).all()


@pytest.mark.parametrize("value", [0.0, 3.7, -1e-3, 1e-30, 3e38])
def test_constant_rows(value):
    values = torch.full((2, 8), value)
    torch.testing.assert_close(round_trip(values)[0], values, rtol=1e-6, atol=0.0)


def test_an_outlier_costs_little_of_its_row_and_nothing_of_the_others():
    values = torch.linspace(-1, 1, 64).repeat(2, 1)
    values[0, 3] = 1000.0
    errors = (round_trip(values)[0] - values).abs()
    assert errors[0, 3] == pytest.approx(0.0, abs=1e-3)
    assert errors[0].max() < 0.07  # 0.5 with int8, whose steps are the same for small numbers and large ones
    assert torch.equal(errors[1], (round_trip(values[1:])[0] - values[1:]).abs()[0])
