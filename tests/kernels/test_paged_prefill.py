"""paged_prefill equals its plain reference in float64, and reads nothing that isn't the sequences'."""

import numpy as np
import pytest
import torch

from framework.kernels.paged_prefill import (
    PrefillTiles,
    most_tiles,
    paged_prefill,
    plain_paged_prefill,
    prefill_tiles,
    queries_per_tile,
)
from tests.kernels.caches import assert_close, copy_cache, make_cache, step_of
from tests.thinning import mostly_nightly

pytest.importorskip("triton")
needs_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="runs in Triton's interpreter without CUDA")

SMALL = PrefillTiles(block_keys=16, num_warps=4, num_stages=2)
SPARE = (-9, 9, 0)  # rows of nobody


def make_case(segments, num_kv_heads=2, group=2, head_dim=16, block_size=16, is_int8=False):
    """q, tables, tiles, num_tiles and a cache for segments (place of the first query, queries, hidden places).

    Places that are not computed yet are NaN, so are other blocks, and the table of a tile that is not to be done.
    """
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    num_seats = len(segments) + 2
    max_blocks = max(1, *(-(-(place + num) // block_size) for place, num, _ in segments))
    order = rng.permutation(num_seats * max_blocks + 2)[: num_seats * max_blocks].astype(np.int32)
    tables = torch.from_numpy(order).view(num_seats, max_blocks)
    seats = rng.permutation(num_seats)[: len(segments)]
    caches = torch.full((2, (num_seats * max_blocks + 2) * block_size, num_kv_heads, head_dim), torch.nan)
    for seat, (place, num, _) in zip(seats.tolist(), segments, strict=True):
        places = torch.arange(max(0, place + num))
        slots = tables[seat][places // block_size] * block_size + places % block_size
        caches[:, slots] = torch.randn(2, len(places), num_kv_heads, head_dim)
    places, nums, hidden = np.array(segments).T
    tiles = prefill_tiles(np.stack((np.cumsum(nums) - nums, nums, seats, places, hidden)), queries_per_tile(group))
    padded = np.full((5, tiles.shape[1] + 3), 10**6, dtype=np.int32)
    padded[:, : tiles.shape[1]] = tiles
    q = torch.randn(nums.sum(), (group + 2) * num_kv_heads, head_dim)[:, : group * num_kv_heads]  # strided
    num_tiles = torch.tensor([tiles.shape[1]], dtype=torch.int32)
    return q, tables, torch.from_numpy(padded), num_tiles, make_cache(*caches, is_int8), block_size


def run(function, case, device="cpu", dtype=torch.float32, **options):
    q, tables, tiles, num_tiles, cache, block_size = case
    output = torch.full((len(q), q.shape[1] * q.shape[2]), torch.nan, dtype=dtype, device=device)
    moved = torch.empty_strided(q.shape, q.stride(), dtype=dtype, device=device).copy_(q)
    whole = (moved, tables.to(device), tiles.to(device), num_tiles.to(device), copy_cache(cache, device, dtype), output)
    function(*whole, block_size=block_size, **options)
    return output


def check(case, device="cpu", dtype=torch.float32, tolerance=2e-5, window=None, cut=SMALL):
    rounded = (case[0].to(dtype), *case[1:4], copy_cache(case[4], "cpu", dtype), case[5])
    expected = run(plain_paged_prefill, rounded, device, torch.float64, window=window)
    output = run(paged_prefill, case, device, dtype, window=window, cut=cut)
    assert output.isfinite().all()
    assert_close(output, expected, tolerance, 0.0 if dtype == torch.float32 else 1e-3 * step_of(case[4]))


LENGTHS = [(0, 1, 0), (0, 16, 0), (0, 17, 0), (15, 1, 0), (16, 1, 0), (33, 70, 0), (64, 3, 0), SPARE]


@needs_interpreter
@pytest.mark.parametrize(("block_size", "is_int8"), mostly_nightly([7, 16, 256], [False, True]))
def test_prompts_and_chunks(block_size, is_int8):
    check(make_case(LENGTHS, head_dim=32, block_size=block_size, is_int8=is_int8))


@needs_interpreter
@pytest.mark.parametrize(  # key and value heads, queries of each, channels
    ("heads", "is_int8"),
    mostly_nightly([(1, 1, 64), (1, 2, 128), (2, 3, 32), (1, 4, 64), (1, 7, 32), (1, 8, 128)], [False, True]),
)
def test_heads(heads, is_int8):
    check(make_case([(5, 40, 0), (0, 130, 0), (31, 1, 0), SPARE], *heads, is_int8=is_int8))


@needs_interpreter
@pytest.mark.parametrize("window", [1, 16, 40])
def test_windows(window):
    check(make_case([(0, 100, 0), (70, 30, 0), (64, 1, 0), SPARE]), window=window)


@needs_interpreter
@pytest.mark.parametrize("window", [None, 20])
def test_padding_is_seen_by_pads_alone(window):
    check(make_case([(0, 3, 0), (3, 40, 3), (0, 30, 0), (30, 5, 30)]), window=window)


@needs_interpreter
def test_half_precision_and_default_tiles():
    for is_int8 in (False, True):
        case = make_case([(100, 40, 0), (0, 70, 0)], head_dim=32, is_int8=is_int8)
        check(case, dtype=torch.float16, tolerance=4e-3, cut=None)


def test_a_program_takes_the_tiles_that_see_most_first():
    tiles = prefill_tiles(np.array([[0, 100, 7, 0, 0], [100, 1, 8, 500, 0], [101, 64, 9, 10, 0]]).T, 32)
    assert tiles.T.tolist() == [
        [100, 1, 8, 500, 0], [96, 4, 7, 96, 0], [64, 32, 7, 64, 0], [133, 32, 9, 42, 0], [32, 32, 7, 32, 0],
        [101, 32, 9, 10, 0], [0, 32, 7, 0, 0],
    ]  # fmt: skip


@pytest.mark.parametrize("group", [1, 2, 3, 4, 8])
def test_the_table_has_room_for_any_mix(group):
    rng = np.random.default_rng(0)
    for _ in range(50):
        nums = rng.integers(1, 200, size=rng.integers(1, 30))
        zeros = np.zeros_like(nums)
        tiles = prefill_tiles(np.stack((np.cumsum(nums) - nums, nums, zeros, zeros, zeros)), queries_per_tile(group))
        assert tiles.shape[1] <= most_tiles(int(nums.sum()), len(nums), group)
        assert tiles[1].sum() == nums.sum()


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(
    ("num_kv_heads", "group", "head_dim", "block_size"),
    [(8, 4, 128, 16), (8, 4, 64, 256), (12, 1, 64, 7), (2, 8, 128, 16), (4, 7, 32, 7), (2, 2, 16, 16)],
)
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("window", [None, 200])
def test_equals_reference_on_cuda(num_kv_heads, group, head_dim, block_size, dtype, tolerance, is_int8, window):
    segments = [*LENGTHS, (0, 700, 0), (2048, 448, 0), (513, 1, 0), (0, 40, 0), (40, 300, 40)]
    case = make_case(segments, num_kv_heads, group, head_dim, block_size, is_int8)
    check(case, "cuda", dtype, tolerance, window, cut=None)


@pytest.mark.gpu
def test_a_captured_graph_follows_the_tiles():
    case = make_case([(0, 700, 0), (2048, 448, 0), (513, 1, 0), SPARE], 8, 4, 128)
    q, tables, tiles, num_tiles, cache, block_size = case
    q, tables, tiles, num_tiles = (part.cuda() for part in (q.bfloat16(), tables, tiles, num_tiles))
    cache = copy_cache(cache, "cuda", torch.bfloat16)
    output, expected = (torch.zeros(len(q), 32 * 128, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    paged_prefill(q, tables, tiles, num_tiles, cache, output, block_size=block_size)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        paged_prefill(q, tables, tiles, num_tiles, cache, output, block_size=block_size)
    for num in (int(num_tiles), 5, 0, 17):
        num_tiles.fill_(num)
        output.zero_()
        expected.zero_()
        graph.replay()
        plain_paged_prefill(q, tables, tiles, num_tiles, cache, expected, block_size=block_size)
        torch.testing.assert_close(output.double(), expected.double(), atol=3e-2, rtol=3e-2)
