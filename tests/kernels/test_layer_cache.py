"""int8 heads: how far they are from what they stand for, whatever is in them; and the cache around them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from framework.kernels.layer_cache import LayerCache, dequantize_heads, quantize_heads
from tests.kernels.caches import make_cache

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # without CUDA in Triton's interpreter
numbers = st.floats(-8e6, 8e6, width=32)


def round_trip(x):
    quantized, scale = quantize_heads(x)
    assert (quantized.dtype, scale.dtype) == (torch.int8, torch.float16)
    return dequantize_heads(quantized, scale, torch.float64), scale.double()[..., None]


@given(st.lists(st.lists(numbers, min_size=8, max_size=8), min_size=1, max_size=5), st.integers(-30, 0))
def test_the_error_is_at_most_half_a_step(rows, exponent):
    """Of rows of any size: constant ones, zeros, and single outliers are among hypothesis's favourites."""
    x = torch.from_numpy(np.array(rows, dtype=np.float32)) * 2.0**exponent
    back, scale = round_trip(x)
    largest = x.abs().amax(dim=1, keepdim=True).double()
    assert (scale <= largest / 127 * (1 + 2**-11) + 2**-24).all()
    bound = scale / 2 * (1 + 1e-4) + torch.where(largest < 2**-7, 2**-18, 0.0)  # near a half, float32 decides
    assert ((back - x.double()).abs() <= bound).all()


def test_constant_rows_zeros_and_an_outlier():
    x = torch.zeros(3, 128)
    x[0], x[1, 5], x[1, 6] = -2.5, 1000.0, 3.0
    back, scale = round_trip(x)
    assert torch.equal(back[2], x[2].double())
    assert (back[0] == -127 * scale[0]).all()
    assert (back[0] + 2.5).abs().max() < 2.5 * 2**-11  # float16's rounding of the scale
    assert back[1, 6] == 0  # less than half of the outlier's steps of 7.9
    assert back[1, 5] == pytest.approx(1000.0, rel=2**-11)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 9e6])
def test_what_int8_cannot_hold_is_read_as_no_number(bad):
    x = torch.ones(2, 16)
    x[0, 3] = bad
    back, _ = round_trip(x)
    assert not back[0].isfinite().any()
    assert back[1].isfinite().all()


@pytest.mark.parametrize("is_int8", [False, True])
def test_what_is_stored_is_read(is_int8):
    """In the given order, and the other slots stay as they are."""
    torch.manual_seed(0)
    cache = make_cache(*torch.full((2, 9, 3, 16), torch.nan), is_int8)
    k, v = torch.randn(2, 4, 3, 16)
    slots = torch.tensor([7, 0, 3, 5])
    stored = cache.store(slots, k, v)
    for got, kept, given_ in zip(cache.read(slots, torch.float32), stored, (k, v), strict=True):
        assert torch.equal(got, kept)
        torch.testing.assert_close(got, given_, atol=0.02 * is_int8, rtol=0)
    others = cache.read(torch.tensor([1, 2, 4, 6, 8]), torch.float32)
    assert all(part.isnan().all() for part in others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_random_contents_have_unit_variance(dtype):
    torch.manual_seed(0)
    scales = torch.full((2, 4, 64), torch.nan, dtype=torch.float16) if dtype == torch.int8 else None
    cache = LayerCache(*torch.zeros(2, 64, 4, 16, dtype=dtype), scales)
    cache.fill_randomly()
    for part in cache.read(torch.arange(64), torch.float32):
        assert abs(float(part.std()) - 1) < 0.05
        assert abs(float(part.mean())) < 0.05
