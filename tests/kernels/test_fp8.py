"""float8 linear layers equal their dequantized selves in float64, whatever the tiles."""

import pytest
import torch

from framework.kernels.byte_linear import fused_byte_linear, fused_dynamic_byte_linear
from framework.kernels.fp8 import (
    FP8,
    dynamic_fp8_linear,
    plain_fp8_linear,
    quantize_fp8,
)
from framework.kernels.linear import Surroundings, fused_quantize, plain_linear, plain_norm
from framework.kernels.tiles import Tiles
from tests.kernels.test_int8 import EPILOGUES, MATRIX, SPLIT_MATRIX, SPLIT_VECTOR, VECTOR
from tests.kernels.test_linear import DEVICE, TOLERANCE, doubled, make_case
from tests.thinning import mostly_nightly

pytest.importorskip("triton")

DYNAMIC = Tiles(block_m=64, block_n=64, block_k=64, split_k=1, num_warps=4, num_stages=2)


def in_float64(x, weight, scale, bias, around):
    return plain_linear(
        x.double(), weight.double() * scale.double(), doubled(bias), Surroundings(*map(doubled, around))
    )


def check(rows, weight_rows, in_features, fused, tiles, dtype=torch.float32):
    x, weight, bias, around = make_case(rows, weight_rows, in_features, fused, dtype)
    case = (x, *quantize_fp8(weight), bias, around)
    expected = in_float64(*case)
    for output in (fused_byte_linear(*case, tiles=tiles), plain_fp8_linear(*case)):
        error = (output.double() - expected).norm() / expected.norm()
        assert output.dtype == dtype
        assert error < TOLERANCE[dtype], error  # also fails on NaN


@pytest.mark.parametrize(("fused", "tiles"), mostly_nightly(EPILOGUES, [VECTOR, MATRIX, SPLIT_VECTOR, SPLIT_MATRIX]))
def test_epilogues(fused, tiles):
    check(1, 2 * 19, 130, fused, tiles)


@pytest.mark.parametrize("rows", [3, 33])
def test_ragged_rows(rows):
    check(rows, 34, 72, ("rms", True, "silu_gate", True), MATRIX)
    check(rows, 17, 64, (None, False, None, True), SPLIT_MATRIX)


@pytest.mark.parametrize("rows", [1, 40])
def test_chosen_tiles(rows):
    check(rows, 70, 250, ("rms", True, "silu_gate", True), None)


def test_rows_become_float8_as_in_plain_pytorch():
    x, _, _, around = make_case(5, 10, 70, ("rms", False, None, False), torch.float32)
    x[3] = 0.0
    got, got_scale = fused_quantize(x, around.norm_weight, around.norm_bias, around.norm_eps, FP8)
    want, want_scale = quantize_fp8(plain_norm(x, around.norm_weight, around.norm_bias, around.norm_eps))
    assert got.dtype == FP8
    torch.testing.assert_close(got_scale, want_scale[:, 0], rtol=1e-5, atol=0.0)
    assert got.float().abs().amax(1).tolist() == [448.0, 448.0, 448.0, 0.0, 448.0]
    if DEVICE == "cuda":  # where the interpreter's rounding to float8 has no part in it
        assert (got.float() != want.float()).double().mean() < 0.01  # what lies between two numbers


def check_dynamic(rows, weight_rows, in_features, fused, tiles, dtype, tolerance):
    """Against the products of what fused_quantize makes of x, and on a GPU against plain PyTorch."""
    x, weight, bias, around = make_case(rows, weight_rows, in_features, fused, dtype)
    case = (x, *quantize_fp8(weight), bias, around)
    quantized, x_scale = fused_quantize(x, around.norm_weight, around.norm_bias, around.norm_eps, FP8)
    after = around._replace(norm_weight=None, norm_bias=None)
    expected = in_float64(quantized.double() * x_scale[:, None].double(), *case[1:4], after)
    output = fused_dynamic_byte_linear(*case, tiles=tiles)
    assert (output.double() - expected).norm() / expected.norm() < tolerance
    if DEVICE == "cuda":
        plain = dynamic_fp8_linear(*case)  # whose norm is rounded to x's dtype before it becomes float8
        assert (output.double() - plain.double()).norm() / expected.norm() < 3 * tolerance


@pytest.mark.parametrize("fused", [("rms", True, "silu_gate", True), (None, False, None, True)])
def test_products_of_float8(fused):
    check_dynamic(65, 32, 128, fused, DYNAMIC, torch.float32, 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 33, 64, 200, 700])
@pytest.mark.parametrize("fused", EPILOGUES)
def test_on_cuda(rows, fused):
    check(rows, 1024, 512, fused, None, torch.bfloat16)
    check_dynamic(rows, 1024, 512, fused, None, torch.bfloat16, 1e-2)


@pytest.mark.gpu
def test_every_number_is_widened_exactly():
    numbers = torch.arange(256, dtype=torch.uint8).view(FP8).cuda()
    numbers = torch.where(numbers.float().isfinite(), numbers.float(), 0.0).to(FP8)
    weight = numbers.repeat(16, 1).T.contiguous().repeat(1, 16)  # (256, 256), each row of one number
    x = torch.zeros(16, 256, dtype=torch.bfloat16, device=DEVICE)
    x[:, 0] = 1.0
    output = fused_byte_linear(x, weight, torch.ones(256, 1, device=DEVICE))
    assert torch.equal(output[0].float(), numbers.float())
