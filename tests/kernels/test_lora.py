"""lora_delta equals its plain reference in float64: ragged groups, mixed ranks, rows without an adapter."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from framework.kernels.lora import (
    MANY_ROWS,
    LoraTiles,
    choose_lora_tiles,
    lora_delta,
    plain_lora_delta,
    rows_per_tile,
    segments,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SMALL = LoraTiles(block_m=16, block_n=32, block_k=32, num_splits=3)
# (in_features, output features of each part)
REAL = {"8B qkv": (4096, (4096, 1024, 1024)), "8B o": (4096, (4096,)), "8B down": (14336, (4096,)),
        "8B gate-up": (4096, (14336, 14336)), "GPT-2 qkv": (768, (2304,))}  # fmt: skip


def make_case(slots, ranks, in_features, sizes, dtype=torch.float32, device=DEVICE):
    """x is a slice of wider rows; what is in the slots beyond an adapter's rank is NaN, which must not be read."""
    generator = torch.Generator(device).manual_seed(len(slots) * in_features + sum(sizes))
    max_rank, width = max(ranks), len(sizes) * in_features + 16

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)

    slab = normal(len(ranks), max_rank, width + sum(sizes), scale=in_features**-0.5)
    for slot, rank in enumerate(ranks):
        slab[slot, rank:] = torch.nan
    a = slab[..., : len(sizes) * in_features].unflatten(-1, (len(sizes), in_features))
    x = normal(len(slots), in_features + 16)[:, :in_features]
    return x, a, slab[..., width:], torch.tensor(ranks, dtype=torch.int32, device=device), np.array(slots)


def check(slots, ranks, in_features, sizes, tiles=None, dtype=torch.float32):
    x, a, b, ranks, slots = make_case(slots, ranks, in_features, sizes, dtype)
    block_m = rows_per_tile(len(slots)) if tiles is None else tiles.block_m
    tables = torch.from_numpy(segments(slots, block_m)).int().to(DEVICE)
    outputs = [lora_delta(x, a, b, ranks, tables, sizes, tiles) for _ in range(2)]
    expected = plain_lora_delta(x.double(), a.double(), b.double(), ranks, tables, sizes)
    assert outputs[0].dtype == dtype
    assert outputs[0].shape == expected.shape
    assert torch.equal(*outputs)
    without = torch.from_numpy(slots == 0).to(DEVICE)
    assert (outputs[0][without] == 0).all()
    error = (outputs[0].double() - expected).norm() / expected.norm().clamp(min=1e-9)
    assert error < TOLERANCE[dtype], error  # also fails on NaN


@pytest.fixture
def triton():
    return pytest.importorskip("triton")


RAGGED = [3, 0, 1, 1, 3, 0, 2, 1, 1, 4, 1]


@pytest.mark.parametrize("sizes", [(40,), (33, 17), (64, 16, 7)])
@pytest.mark.parametrize("tiles", [None, SMALL])
def test_ragged_rows_and_mixed_ranks(triton, tiles, sizes):
    check(RAGGED, [0, 8, 16, 5, 32], 130, sizes, tiles)


@pytest.mark.parametrize("rank", [8, 16, 32, 64, 128])
def test_ranks(triton, rank):
    check([1, 2, 0, 1], [0, rank, 8], 96, (48, 16), None if rank == 128 else SMALL)


@pytest.mark.parametrize(
    "slots",
    [[0], [1], [0] * 20, [2] * 40, list(range(5)) * 7, [1] * 16 + [2] * 17],
    ids=["none", "one", "all none", "identical", "in turns", "whole tiles and one more"],
)
def test_groups_and_tiles(triton, slots):
    check(slots, [0, 8, 16, 4, 8], 64, (24, 8), SMALL)


def test_many_rows(triton):
    generator = np.random.default_rng(0)
    check(generator.integers(0, 4, 300).tolist(), [0, 8, 16, 8], 32, (16,))


def test_plain_delta_by_hand():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    a = torch.tensor([[[[0.0, 0.0]]], [[[1.0, 1.0]]]])  # (2 slots, rank 1, 1 part, 2)
    b = torch.tensor([[[0.0, 0.0, 0.0]], [[1.0, 0.0, -2.0]]])
    tables = torch.from_numpy(segments(np.array([0, 1]), 16))
    delta = plain_lora_delta(x, a, b, torch.tensor([0, 1]), tables, (3,))
    assert delta.tolist() == [[0.0, 0.0, 0.0], [7.0, 0.0, -14.0]]


@pytest.mark.parametrize("num_rows", [1, 16, 256, 257, 8192])
@pytest.mark.parametrize("max_rank", [8, 16, 64, 128])
@pytest.mark.parametrize("in_features", [130, 4096, 14336])
def test_chosen_tiles(num_rows, max_rank, in_features):
    tiles = choose_lora_tiles(num_rows, in_features, 3, max_rank)
    assert tiles.block_m == rows_per_tile(num_rows)
    assert 1 <= tiles.num_splits <= in_features / tiles.block_k + 1
    assert 2 * tiles.num_stages * tiles.block_k * (tiles.block_m + max_rank) <= 200 * 1024  # bytes of shared memory
    own = (tiles.block_m, tiles.block_n, tiles.block_k)  # what kernels are compiled for
    fewest = choose_lora_tiles(1 if num_rows <= MANY_ROWS else MANY_ROWS + 1, 64, 3, max_rank)
    assert own == (fewest.block_m, fewest.block_n, fewest.block_k)


@pytest.mark.gpu
class TestOnGPU:
    @pytest.fixture(autouse=True)
    def poison(self):
        """Freed memory that the next torch.empty gets is full of NaN."""
        torch.full((2**28,), float("nan"), device="cuda")

    @pytest.mark.parametrize("name", REAL)
    @pytest.mark.parametrize("num_rows", [1, 32, 128, 600])
    @pytest.mark.parametrize("ranks", [[0, 16, 16, 16], [0, 8, 64, 128]])
    def test_real_shapes(self, triton, ranks, num_rows, name):
        in_features, sizes = REAL[name]
        slots = np.random.default_rng(0).integers(0, 4, num_rows)
        slots[0] = 1
        check(slots.tolist(), ranks, in_features, sizes, dtype=torch.bfloat16)

    def test_a_graph_holds_for_other_adapters(self, triton):
        ranks, sizes = [0, 16, 8, 32], (512, 128, 128)
        x, a, b, ranks, slots = make_case([1] * 32, ranks, 1024, sizes, torch.bfloat16)
        tables = torch.from_numpy(segments(slots, 16)).int().cuda()
        lora_delta(x, a, b, ranks, tables, sizes)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = lora_delta(x, a, b, ranks, tables, sizes)
        for seed in range(20):
            slots = np.random.default_rng(seed).integers(0, 4, 32)
            tables.copy_(torch.from_numpy(segments(slots, 16)))
            captured.fill_(float("nan"))
            graph.replay()
            assert torch.equal(captured, lora_delta(x, a, b, ranks, tables, sizes))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.sampled_from([1, 4, 16, None]))
def test_every_row_is_in_one_tile_of_its_slot(slots, block_m):
    slots = np.array(slots)
    order, tile_slots, starts, lengths = segments(slots, block_m)
    assert sorted(order) == list(range(len(slots)))
    seen = []
    for slot, start, length in zip(tile_slots, starts, lengths, strict=True):
        rows = order[start : start + length]
        assert (slots[rows] == slot).all()
        assert length <= (block_m or len(slots))
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(slots)))
    num_tiles = np.count_nonzero(lengths)
    assert (lengths[num_tiles:] == 0).all()
    if block_m:  # as many as lora_delta launches at most
        assert num_tiles <= min(len(slots), len(slots) // block_m + 6)
    else:
        assert num_tiles == len(set(slots.tolist()))
