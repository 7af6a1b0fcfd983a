"""How launches are cut: tiles that fit the shape and the shared memory of an SM."""

import pytest

from framework.kernels.tiles import Shape, choose_byte_tiles, choose_tiles
from tests.kernels.test_linear import REAL


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("out_features", "in_features"), [(4096, 4096), (128256, 2048), (50257, 768), (768, 3072)])
@pytest.mark.parametrize("rows", [1, 2, 16, 17, 64, 128, 256])
def test_tiles_are_powers_of_two_and_splits_have_work(rows, out_features, in_features, gated):
    tiles = choose_tiles(Shape(rows, out_features, in_features, gated), 132)
    assert all(size & (size - 1) == 0 for size in (tiles.block_m, tiles.block_n, tiles.block_k))
    assert in_features % tiles.block_k == 0  # these shapes need no mask
    assert tiles.split_k * tiles.block_k <= in_features
    assert tiles.block_m == 1 or min(rows, 16) <= tiles.block_m <= 128


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("rows", [1, 16, 32, 64, 128])
def test_tiles_fit_into_shared_memory(rows, name):
    weight_rows, in_features, (norm, _, activation, _) = REAL[name]
    gated = activation == "silu_gate"
    tiles = choose_tiles(Shape(rows, weight_rows // (1 + gated), in_features, gated, norm is not None), 132)
    assert 2 * (tiles.block_m + tiles.block_n) * tiles.block_k * tiles.num_stages <= 227 * 2**10  # bytes of an SM


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("out_features", "in_features"), [(4096, 4096), (128256, 2048), (50257, 768), (768, 3072)])
@pytest.mark.parametrize("rows", [1, 2, 16, 17, 64, 128, 256])
def test_byte_tiles_fit_the_shape(rows, out_features, in_features, gated):
    tiles = choose_byte_tiles(Shape(rows, out_features, in_features, gated), 132)
    assert in_features % tiles.block_k == 0  # these shapes need no mask
    assert tiles.split_k * tiles.block_k <= in_features
