"""paged_decode equals its plain reference in float64, caches included, and reads nothing that isn't the sequence's."""

import dataclasses

import numpy as np
import pytest
import torch

from framework.kernels.decode_plan import MIN_KEYS, decode_items, decode_plan, plain_decode_plan
from framework.kernels.layer_cache import LayerCache
from framework.kernels.paged_decode import (
    DecodeTiles,
    choose_plan,
    choose_splits,
    choose_tiles,
    paged_decode,
    paged_decode_items,
    parts_wanted,
    plain_paged_decode,
)
from tests.kernels.caches import assert_close, contents, copy_cache, make_cache, step_of, with_key_offset
from tests.thinning import mostly_nightly

pytest.importorskip("triton")
needs_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="runs in Triton's interpreter without CUDA")

SMALL = DecodeTiles(block_keys=16, min_keys=16)


@dataclasses.dataclass
class Case:
    """Arguments of paged_decode; unused cache slots are NaN."""

    args: dict
    kwargs: dict

    def to(self, device, dtype):
        def move(value):
            if isinstance(value, LayerCache):
                return copy_cache(value, device, dtype)
            if not isinstance(value, torch.Tensor):
                return value
            return value.to(device, dtype if value.is_floating_point() else None, copy=True)

        return Case(*({name: move(value) for name, value in part.items()} for part in (self.args, self.kwargs)))

    def run(self, function, **options):
        return function(**self.args, **self.kwargs, **options)


def make_case(
    lengths, num_kv_heads=2, group=2, head_dim=16, block_size=16, padding=None, rope=True, norms=False, is_int8=False,
    value_size=1.0,
):  # fmt: skip
    """float32 on the CPU; no row has blocks that it doesn't need, empty ones get NaN and a seat that doesn't exist."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    num_rows, num_seats = len(lengths), len(lengths) + 3
    num_blocks = [-(-length // block_size) for length in lengths]
    blocks = rng.permutation(sum(num_blocks) + 2).tolist()  # two are nobody's
    tables = torch.full((num_seats, max(1, *num_blocks)), blocks.pop(), dtype=torch.int32)
    seats = torch.from_numpy(rng.permutation(num_seats)[:num_rows].astype(np.int32))
    for seat, num in zip(seats.tolist(), num_blocks, strict=True):
        tables[seat, :num] = torch.tensor([blocks.pop() for _ in range(num)], dtype=torch.int32)
    caches = torch.full((2, (sum(num_blocks) + 2) * block_size, num_kv_heads, head_dim), torch.nan)
    for seat, length in zip(seats.tolist(), lengths, strict=True):
        places = torch.arange(max(0, length - 1))
        slots = tables[seat][places // block_size] * block_size + places % block_size
        caches[:, slots] = torch.randn(2, len(places), num_kv_heads, head_dim)
    qkv = torch.randn(num_rows, (group + 2) * num_kv_heads, head_dim)
    caches[1] *= value_size
    qkv[:, -num_kv_heads:] *= value_size
    empty = torch.tensor(lengths) == 0
    qkv[empty], seats[empty] = torch.nan, 10**6
    args = {
        "qkv": qkv,
        "rope": torch.randn(num_rows, 2, head_dim) if rope else None,
        "tables": tables,
        "seats": seats,
        "context_lens": torch.tensor(lengths, dtype=torch.int32),
        "padding": torch.tensor(padding or [0] * num_rows, dtype=torch.int32),
        "cache": make_cache(*caches, is_int8),
    }
    kwargs = {"num_kv_heads": num_kv_heads, "block_size": block_size}
    if norms:
        kwargs |= {"q_norm": torch.rand(head_dim), "k_norm": torch.rand(head_dim) + 0.5, "norm_eps": 1e-5}
    return Case(args, kwargs)


def check(case, device="cpu", dtype=torch.float32, tolerance=2e-5, function=paged_decode, **options):
    """The outputs may differ where a new key or value is rounded to the neighbouring int8 number."""
    case = case.to(device, dtype)
    wide = case.to(device, torch.float64)
    expected, output = wide.run(plain_paged_decode), case.run(function, **options)
    assert output.isfinite().all()
    step = step_of(wide.args["cache"])
    assert_close(output, expected, tolerance, step)
    for got, want in zip(contents(case.args["cache"]), contents(wide.args["cache"]), strict=True):
        assert_close(got, want, tolerance, step)


@needs_interpreter
@pytest.mark.parametrize(
    ("block_size", "is_int8", "num_splits"), mostly_nightly([7, 16, 256], [False, True], [4, 1, 16, None])
)
def test_lengths(block_size, is_int8, num_splits):
    case = make_case([1, 2, 15, 16, 17, 33, 0, 65], head_dim=32, block_size=block_size, is_int8=is_int8)
    check(case, num_splits=num_splits, tiles=SMALL)


@needs_interpreter
@pytest.mark.parametrize(  # key and value heads, queries of each, channels
    ("heads", "is_int8"),
    mostly_nightly([(3, 1, 64), (1, 2, 128), (2, 3, 32), (1, 4, 64), (1, 8, 32)], [False, True]),
)
def test_heads(heads, is_int8):
    check(make_case([5, 40, 0], *heads, is_int8=is_int8), num_splits=4, tiles=SMALL)


@needs_interpreter
@pytest.mark.parametrize(("num_splits", "is_int8"), [(1, False), (4, False), (4, True)])
def test_padding_is_read_but_not_attended_to(num_splits, is_int8):
    case = make_case([40, 40, 40, 17, 1], head_dim=32, padding=[3, 16, 39, 16, 0], is_int8=is_int8)
    check(case, num_splits=num_splits, tiles=SMALL)


@needs_interpreter
@pytest.mark.parametrize("num_splits", [1, 4])
def test_the_offset_of_int8_keys_is_taken_off(num_splits):
    case = make_case([40, 17, 0, 1], head_dim=32, is_int8=True)
    case.args["cache"] = with_key_offset(case.args["cache"])
    check(case, num_splits=num_splits, tiles=SMALL, tolerance=1e-4)


@needs_interpreter
@pytest.mark.parametrize("window", [1, 16, 30])
@pytest.mark.parametrize("is_int8", [False, True])
def test_windows(window, is_int8):
    case = make_case([40, 17, 1, 70, 0], head_dim=32, padding=[3, 0, 0, 60, 0], is_int8=is_int8)
    case.kwargs["window"] = window
    check(case, num_splits=4, tiles=SMALL)


def run_items(*, num_parts=None, min_keys=MIN_KEYS, context_lens, num_kv_heads, cache, qkv, **others):
    """paged_decode over the items that the host would choose; the rows that it names none of stay NaN."""
    if num_parts is None:
        num_parts = parts_wanted(num_kv_heads, qkv.device)
    items = decode_items(context_lens[context_lens > 0].cpu().numpy(), num_parts, min_keys)
    items[0] = np.flatnonzero(context_lens.cpu().numpy())[items[0]]
    padded = torch.full((3, num_parts + len(qkv)), 10**6, dtype=torch.int32)
    padded[:, : items.shape[1]] = torch.from_numpy(items)
    num_items = torch.tensor([items.shape[1]], dtype=torch.int32)
    num_heads = qkv.shape[1] - 2 * num_kv_heads
    output = torch.full((len(qkv), num_heads * qkv.shape[2]), torch.nan, dtype=qkv.dtype, device=qkv.device)
    paged_decode_items(
        qkv, context_lens=context_lens, num_kv_heads=num_kv_heads, cache=cache, output=output,
        items=padded.to(qkv.device), num_items=num_items.to(qkv.device), **others,
    )  # fmt: skip
    assert output[context_lens == 0].isnan().all()
    return output.nan_to_num()


@needs_interpreter
@pytest.mark.parametrize(("num_parts", "is_int8", "window"), mostly_nightly([9, 40, None], [False, True], [None, 300]))
def test_items(num_parts, is_int8, window, monkeypatch):
    monkeypatch.setattr("framework.kernels.paged_decode.ITEM_TILES", dataclasses.replace(SMALL, min_keys=32))
    case = make_case([0, 5, 70, 33, 513, 0, 260], head_dim=32, padding=[0, 3, 0, 0, 40, 0, 0], is_int8=is_int8)
    case.kwargs["window"] = window
    check(case, function=run_items, num_parts=num_parts, min_keys=32)


UNEVEN = [150, 5, 0, 33, 1, 17]


@needs_interpreter
@pytest.mark.parametrize(("lengths", "num_parts", "longest"), [(UNEVEN, 6, 4), ([20] * 4, 4, 1), ([0, 0], 1, 1)])
def test_a_plan_splits_the_long_rows(lengths, num_parts, longest):
    case = make_case(lengths, num_kv_heads=2, group=1, padding=[min(3, max(0, length - 1)) for length in lengths])
    plan = decode_plan(case.args["context_lens"], num_parts, 16)
    assert max(plan[2]) == longest
    check(case, plan=plan, tiles=SMALL)


@needs_interpreter
@pytest.mark.parametrize(("window", "is_int8"), mostly_nightly([100, 1, None], [True, False]))
def test_a_plan_with_windows(window, is_int8):
    case = make_case([150, 5, 0, 40], num_kv_heads=1, head_dim=32, is_int8=is_int8)
    case.kwargs["window"] = window
    check(case, plan=decode_plan(case.args["context_lens"], 6, 16), tiles=SMALL)


@needs_interpreter
@pytest.mark.parametrize("is_int8", [False, True])
def test_a_chosen_plan_and_default_tiles(is_int8):
    case = make_case([600, 5, 1, 0], num_kv_heads=1, head_dim=32, is_int8=is_int8)
    plan = choose_plan(case.args["context_lens"], 1)
    assert plan[:2].T.tolist() == [[0, 0], [0, 1], [1, 0], [2, 0], [3, 0], *[[0, 1]] * 3]
    check(case, dtype=torch.float16, tolerance=3e-3, plan=plan)
    assert choose_plan(case.args["context_lens"][:3], 1) is None


@needs_interpreter
@pytest.mark.parametrize(("rope", "norms"), [(False, False), (True, True), (False, True)])
def test_rope_and_norms_are_optional(rope, norms):
    check(make_case([9, 33], rope=rope, norms=norms), num_splits=2, tiles=SMALL)


@needs_interpreter
def test_tiles_larger_and_smaller_than_a_block():
    case = make_case([70, 64, 3], block_size=32)
    for block_keys, min_keys in [(16, 64), (32, 32), (64, 64)]:
        check(case, num_splits=4, tiles=DecodeTiles(block_keys, min_keys=min_keys))


@needs_interpreter
@pytest.mark.parametrize("is_int8", [False, True])
def test_half_precision_and_default_tiles(is_int8):
    check(make_case([70, 5, 129], head_dim=32, is_int8=is_int8), dtype=torch.float16, tolerance=3e-3)


@needs_interpreter
def test_products_of_weights_and_scales_stay_in_the_range_of_float16():
    case = make_case([257, 130], head_dim=32, is_int8=True, value_size=2**-12).to("cpu", torch.float16)
    expected = 2**12 * case.to("cpu", torch.float64).run(plain_paged_decode)
    actual = 2**12 * case.run(paged_decode).double()
    torch.testing.assert_close(actual, expected, atol=3e-3, rtol=3e-3)


@needs_interpreter
def test_unusable_heads_are_refused():
    with pytest.raises(ValueError, match="head_dim 24 must be a power of two"):
        make_case([3], head_dim=24).run(paged_decode)
    with pytest.raises(ValueError, match="head_dim 16 is too small for an int8 cache"):
        make_case([3], head_dim=16, is_int8=True).run(paged_decode)
    case = make_case([3, 3])
    case.args["qkv"] = case.args["qkv"].repeat(2, 1, 1)[::2]
    with pytest.raises(ValueError, match="contiguous"):
        case.run(paged_decode)


def test_splits():
    assert [choose_splits(rows, 8, 132) for rows in (1, 16, 17, 65, 66, 4096)] == [32, 32, 8, 8, 1, 1]


@pytest.mark.parametrize("size", [4, 2, 1])  # bytes: float32, bfloat16, int8
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("rows", [1, 4, 16, 64, 256])
def test_tiles_fit_into_shared_memory(rows, head_dim, size):
    tiles = choose_tiles(rows, 8, 132, head_dim, is_int8=size == 1)
    block_keys = tiles.block_keys // 2 if size == 4 else tiles.block_keys
    in_flight = 2 * (tiles.num_stages - 1) * block_keys * head_dim * size  # tiles of keys and of values
    assert in_flight + 24 * 2**10 <= 227 * 2**10  # bytes of an SM; compiled, the rest takes up to 20 KiB


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(
    ("num_kv_heads", "group", "head_dim", "block_size"),
    [(8, 4, 128, 16), (8, 4, 64, 256), (12, 1, 64, 7), (2, 8, 128, 16), (4, 7, 32, 7), (2, 2, 256, 16)],
)
@pytest.mark.parametrize("is_int8", [False, True])
def test_equals_reference_on_cuda(num_kv_heads, group, head_dim, block_size, dtype, tolerance, is_int8):
    lengths, padding = [1, 2, 0, 64, 65, 66, 513, 2049, 1500, 300], [0, 1, 0, 0, 64, 3, 0, 700, 1499, 0]
    norms = group == 8
    case = make_case(lengths, num_kv_heads, group, head_dim, block_size, padding, norms=norms, is_int8=is_int8)
    for num_splits in (1, 4, 16, None):
        check(case, "cuda", dtype, tolerance, num_splits=num_splits)
    for case.kwargs["window"] in (None, 200):
        check(case, "cuda", dtype, tolerance)
        check(case, "cuda", dtype, tolerance, function=run_items)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("num_kv_heads", "group", "head_dim"), [(8, 4, 128), (8, 4, 64), (12, 1, 64), (8, 2, 256)])
@pytest.mark.parametrize("is_int8", [False, True])
def test_a_long_row_among_many_equals_reference_on_cuda(num_kv_heads, group, head_dim, dtype, tolerance, is_int8):
    lengths = [8000, *[3 + 7 * index % 300 for index in range(126)], 0]
    case = make_case(lengths, num_kv_heads, group, head_dim, padding=[70, *[0] * 127], is_int8=is_int8)
    case = case.to("cuda", dtype)
    plan = choose_plan(case.args["context_lens"], num_kv_heads)
    assert torch.equal(plan, plain_decode_plan(case.args["context_lens"], plan.shape[1] - 128))
    assert plan[2].max() > 8
    for case.kwargs["window"] in (None, 2000):
        check(case, "cuda", dtype, tolerance, plan=plan)


@pytest.mark.gpu
@pytest.mark.parametrize("is_int8", [False, True])
def test_repeated_runs_are_bit_equal(is_int8):
    case = make_case([3000, 17, 1200], 8, 4, 128, is_int8=is_int8).to("cuda", torch.bfloat16)
    first = case.run(paged_decode, num_splits=16)
    assert all(torch.equal(first, case.run(paged_decode, num_splits=16)) for _ in range(50))


@pytest.mark.gpu
@pytest.mark.parametrize("is_int8", [False, True])
def test_a_captured_graph_follows_the_lengths(is_int8):
    follow_lengths([[600] * 4, [600, 5, 1, 300], [0, 599, 64, 0], [65, 600, 600, 2]], is_int8, is_planned=False)


@pytest.mark.gpu
@pytest.mark.parametrize("is_int8", [False, True])
def test_a_captured_graph_plans_anew(is_int8):
    lengths = [[2000] * 80, [5] * 79 + [2000], [1999, *[0] * 79], [*range(1, 1600, 20)], [0] * 80, [2000] * 80]
    follow_lengths(lengths, is_int8, is_planned=True)


def follow_lengths(lengths, is_int8, *, is_planned):
    """Replay one graph, captured with the first lengths, with the others."""
    case = make_case(lengths[0], 8, 4, 128, is_int8=is_int8).to("cuda", torch.bfloat16)
    context_lens = case.args["context_lens"]

    def run():
        plan = choose_plan(context_lens, 8)
        assert (plan is not None) == is_planned
        return case.run(paged_decode, plan=plan)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    for some in lengths[1:]:
        context_lens.copy_(torch.tensor(some))
        expected = case.to("cuda", torch.float64).run(plain_paged_decode)
        graph.replay()
        error = output.double() - expected  # of 327,680 numbers, a few are where several roundings add up
        assert error.abs().max() < 0.1
        assert error.square().mean() < 0.01**2
