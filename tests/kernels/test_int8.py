"""int8 linear layers equal their dequantized selves in float64, whatever the tiles; round trips keep their bounds."""

from dataclasses import replace
from itertools import product

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from framework.kernels.byte_linear import fused_byte_linear, fused_dynamic_byte_linear
from framework.kernels.int8 import (
    dequantize_int8,
    dynamic_int8_linear,
    int_matmul,
    plain_int8_linear,
    quantize_int8,
)
from framework.kernels.linear import Surroundings, fused_quantize, plain_linear
from framework.kernels.tiles import Tiles
from tests.kernels.test_linear import DEVICE, REAL, TOLERANCE, doubled, make_case
from tests.thinning import mostly_nightly

VECTOR = Tiles(block_m=1, block_n=16, block_k=64, split_k=1, num_warps=4, num_stages=1)
SPLIT_VECTOR = Tiles(block_m=1, block_n=16, block_k=64, split_k=3, num_warps=4, num_stages=1)
MATRIX = Tiles(block_m=16, block_n=32, block_k=32, split_k=1, num_warps=4, num_stages=2)
SPLIT_MATRIX = Tiles(block_m=16, block_n=32, block_k=32, split_k=3, num_warps=4, num_stages=2)
MATRICES = arrays("float32", (3, 10), elements=st.floats(-(2.0**100), 2.0**100, width=32))


def make_int8_case(rows, weight_rows, in_features, fused, group_size, dtype=torch.float32):
    """(x, weight, scale, bias, surroundings)."""
    x, weight, *others = make_case(rows, weight_rows, in_features, fused, dtype)
    return x, *quantize_int8(weight, group_size), *others


def in_float64(x, weight, scale, bias, around, group_size=None):
    dequantized = dequantize_int8(weight, scale.double(), group_size, torch.float64)
    return plain_linear(x.double(), dequantized, doubled(bias), Surroundings(*map(doubled, around)))


def check(rows, weight_rows, in_features, fused, tiles, group_size=None, dtype=torch.float32):
    case = make_int8_case(rows, weight_rows, in_features, fused, group_size, dtype)
    outputs = [fused_byte_linear(*case, group_size=group_size, tiles=tiles) for _ in range(2)]
    expected = in_float64(*case, group_size)
    assert outputs[0].dtype == dtype
    assert torch.equal(*outputs)
    for output in (outputs[0], plain_int8_linear(*case, group_size=group_size)):
        error = (output.double() - expected).norm() / expected.norm()
        assert error < TOLERANCE[dtype], (error, tiles)  # also fails on NaN


@pytest.fixture
def triton():
    return pytest.importorskip("triton")


@settings(deadline=None)
@given(MATRICES, st.sampled_from([None, 4, 16]))
def test_round_trip_is_within_half_a_step(values, group_size):
    values = torch.from_numpy(values)
    quantized, scale = quantize_int8(values, group_size)
    assert quantized.shape == values.shape
    assert scale.shape == (3, {None: 1, 4: 3, 16: 1}[group_size])
    restored = dequantize_int8(quantized, scale, group_size, torch.float32)
    steps = dequantize_int8(torch.ones_like(quantized), scale, group_size, torch.float32)
    assert ((restored - values).abs() <= 0.5001 * steps).all()
    assert quantized.abs().max() <= 127


@pytest.mark.parametrize("value", [0.0, 3.7, -1e-3, 1e-40, 3e38])
def test_constant_rows(value):
    values = torch.full((2, 8), value)
    restored = dequantize_int8(*quantize_int8(values), None, torch.float32)
    torch.testing.assert_close(restored, values, rtol=1e-6, atol=1e-37)


def test_an_outlier_costs_only_its_own_group():
    values = torch.linspace(-1, 1, 64).repeat(2, 1)
    values[0, 3] = 1000.0
    errors = (dequantize_int8(*quantize_int8(values, 16), 16, torch.float32) - values).abs()
    assert errors[0, :16].max() > 0.5
    assert errors[0, 16:].max() < 0.005
    assert errors[1].max() < 0.005


EPILOGUES = [
    (None, False, None, False),
    ("rms", False, "silu_gate", True),
    ("layer", True, "gelu", False),
    ("layer", True, "silu_gate", False),
]


@pytest.mark.parametrize(
    ("fused", "tiles", "group_size"),
    mostly_nightly(EPILOGUES, [VECTOR, MATRIX, SPLIT_VECTOR, SPLIT_MATRIX], [None, 64, 32]),
)
def test_epilogues(triton, fused, tiles, group_size):
    check(1, 2 * 19, 130, fused, tiles, group_size)


@pytest.mark.parametrize(("rows", "tiles"), [*product([3, 33], [MATRIX, SPLIT_MATRIX])])
def test_ragged_rows(triton, rows, tiles):
    check(rows, 34, 72, ("rms", True, "silu_gate", True), tiles, 32)
    check(rows, 17, 64, (None, False, None, True), tiles)


@pytest.mark.parametrize("tiles", [SPLIT_VECTOR, SPLIT_MATRIX])
def test_groups_of_zeros_with_outliers_and_of_unlike_size(triton, tiles):
    """More splits than there is work for, a last group of one feature, and scales from 1e-38 to 100."""
    x, weight, *_ = make_case(1, 33, 129, (None, False, None, False), torch.float32)
    weight[:, 32:64], weight[3], weight[5, 70] = 0.0, 0.0, 1e4
    for group_size in (32, 64, 128):
        quantized, scale = quantize_int8(weight, group_size)
        expected = in_float64(x, quantized, scale, None, Surroundings(), group_size)
        output = fused_byte_linear(x, quantized, scale, group_size=group_size, tiles=replace(tiles, split_k=4))
        torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "group_size"), [*product([1, 3, 40], [None, 128]), (1, 16), (3, 16), (3, 256), (80, None), (80, 32)]
)
def test_chosen_tiles(triton, rows, group_size):
    check(rows, 70, 250, ("rms", True, "silu_gate", True), None, group_size)


@pytest.mark.parametrize("rows", [1, 16, 33])
@pytest.mark.parametrize(("out_features", "in_features"), [(24, 40), (19, 37)])
def test_int_matmul_is_exact(rows, out_features, in_features):
    generator = torch.Generator(DEVICE).manual_seed(0)
    sizes = ((rows, in_features), (out_features, in_features))
    options = {"dtype": torch.int8, "device": DEVICE, "generator": generator}
    x, weight = (torch.randint(-127, 128, size, **options) for size in sizes)
    assert torch.equal(int_matmul(x, weight).cpu().long(), x.cpu().long() @ weight.cpu().long().T)


@pytest.mark.parametrize("fused", [("rms", True, "silu_gate", True), ("layer", True, "gelu", False)])
def test_dynamic_linear_equals_its_quantized_numbers(fused):
    x, *others = make_int8_case(5, 48, 64, (None, *fused[1:]), None)
    rounded = dequantize_int8(*quantize_int8(x), None, torch.float32)
    expected = in_float64(rounded, *others)
    output = dynamic_int8_linear(x, *others)
    assert (output.double() - expected).norm() / expected.norm() < 1e-5
    case = make_int8_case(5, 48, 64, fused, None)
    expected = in_float64(*case)
    output = dynamic_int8_linear(*case)
    assert (output.double() - expected).norm() / expected.norm() < 2e-2


DYNAMIC_EPILOGUES = [
    (None, False, None, True),
    ("rms", True, "silu_gate", True),
    ("layer", True, "gelu", False),
    ("layer", False, "silu_gate", False),
]


@pytest.mark.parametrize(
    ("rows", "fused", "tiles"), mostly_nightly([1, 33], DYNAMIC_EPILOGUES, [MATRIX, SPLIT_MATRIX, None])
)
def test_fused_dynamic_linear(triton, rows, fused, tiles):
    check_dynamic(rows, 2 * 19, 130, fused, tiles, torch.float32)


def check_dynamic(rows, weight_rows, in_features, fused, tiles, dtype):
    x, weight, scale, bias, around = make_int8_case(rows, weight_rows, in_features, fused, None, dtype)
    outputs = [fused_dynamic_byte_linear(x, weight, scale, bias, around, tiles=tiles) for _ in range(2)]
    assert outputs[0].dtype == dtype
    assert torch.equal(*outputs)
    expected = dynamic_int8_linear(x.double(), weight, scale, doubled(bias), Surroundings(*map(doubled, around)))
    error = (outputs[0].double() - expected).norm() / expected.norm()
    assert error < max(TOLERANCE[dtype], 2e-3), error  # a tie may round the other way


def test_fused_quantize_equals_its_reference(triton):
    x = torch.randn(5, 100, device=DEVICE)
    x[1], x[2, 3] = 0.0, float("nan")
    (quantized, scale), (expected, expected_scale) = fused_quantize(x, None, None, 0.0), quantize_int8(x)
    torch.testing.assert_close(scale, expected_scale[:, 0], equal_nan=True)
    assert scale[2].isnan()
    kept = [0, 1, 3, 4]
    assert (quantized[kept].int() - expected[kept].int()).abs().max() <= 1
    assert (quantized[kept] == expected[kept]).float().mean() > 0.99


@pytest.mark.gpu
class TestOnGPU:
    @pytest.mark.parametrize("name", REAL)
    @pytest.mark.parametrize("rows", [1, 40, 100, 200, 700])
    def test_dynamic_on_real_shapes(self, triton, rows, name):
        check_dynamic(rows, *REAL[name], None, torch.bfloat16)

    @pytest.mark.parametrize("group_size", [None, 128])
    @pytest.mark.parametrize("name", REAL)
    @pytest.mark.parametrize("rows", [1, 5, 16, 32, 64, 200])
    def test_real_shapes(self, triton, rows, name, group_size):
        check(rows, *REAL[name], None, group_size, torch.bfloat16)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    @pytest.mark.parametrize("rows", [1, 5, 64])
    def test_other_dtypes(self, triton, rows, dtype):
        check(rows, 1024, 768, ("layer", True, "silu_gate", True), None, None, dtype)
        check(rows, 1000, 770, ("rms", True, "gelu", False), None, 128, dtype)

    @pytest.mark.parametrize("rows", [1, 16, 64])
    def test_overlapping_launches_in_a_graph(self, triton, rows):
        x, *others = make_int8_case(rows, 2048, 2048, ("rms", False, None, True), None, torch.bfloat16)

        def chain():
            y = x
            for _ in range(20):
                y = fused_byte_linear(y, *others)
            return y

        eager = chain()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = chain()
        for _ in range(50):
            captured.fill_(float("nan"))
            graph.replay()
            assert torch.equal(captured, eager)
