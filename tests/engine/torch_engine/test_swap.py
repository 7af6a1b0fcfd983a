"""Blocks go to the host and come back bit for bit; on a GPU with graphs and overlap no sequence reads foreign keys."""

from functools import partial

import pytest
import torch

from framework.build import make_scheduler, replay_trace
from framework.core import Batch, Request, Sequence
from framework.engine.torch_engine import swap as swap_module
from framework.engine.torch_engine.options import check_swap
from framework.engine.torch_engine.swap import ALIGNMENT, Swap, reads, runs
from framework.kernels.layer_cache import LayerCache
from framework.scheduler.continuous import ContinuousScheduler
from tests.engine.torch_engine.test_engine import TINY_CONFIG
from tests.engine.torch_engine.test_engine import make_engine as make_tiny
from tests.engine.torch_engine.test_replay_tokens import make_arrivals, with_equal_beginnings
from tests.engine.torch_engine.test_schedules import float32_through, make_engine

NUM_BLOCKS, BLOCK_SIZE = 12, 3
EXACT = {"dtype": "float32", "change": "segmented"}
CPU = pytest.param("cpu", id="cpu")
CUDA = pytest.param("cuda", marks=pytest.mark.gpu, id="cuda")


def make_caches(dtype, device="cpu"):
    caches = []
    for _ in range(2):
        k, v = (torch.empty(NUM_BLOCKS * BLOCK_SIZE, 2, 5, dtype=dtype, device=device) for _ in range(2))
        is_int8 = dtype == torch.int8
        scales = torch.empty(2, 2, len(k), dtype=torch.float16, device=device) if is_int8 else None
        caches.append(LayerCache(k, v, scales))
        caches[-1].fill_randomly()
        if scales is not None:
            scales.copy_(torch.rand(scales.shape))
    return caches


def contents(caches, block):
    """All that is kept of a block."""
    slots = slice(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE)
    parts = [part[slots].clone() for cache in caches for part in (cache.k, cache.v)]
    return parts + [cache.scales[:, :, slots].clone() for cache in caches if cache.scales is not None]


def is_equal(some, others):
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def batch_of(*block_tables):
    sequences = [Sequence(Request(index, 0.0, 4, 4)) for index in range(len(block_tables))]
    for sequence, table in zip(sequences, block_tables, strict=True):
        sequence.block_table = list(table)
    num = len(sequences)
    return Batch(sequences, [4] * num, [1] * num, 0, num)


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("num_buffered", [2, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_blocks_come_back_as_they_went(device, dtype, num_buffered, monkeypatch):
    caches = make_caches(dtype, device)
    row_bytes = Swap(caches, BLOCK_SIZE, 8).on_host.shape[1]
    monkeypatch.setattr(swap_module, "BUFFER_BYTES", num_buffered * row_bytes)
    swap = Swap(caches, BLOCK_SIZE, 8)
    assert (swap.num_buffered, row_bytes % ALIGNMENT) == (min(num_buffered, 8), 0)
    before = [contents(caches, block) for block in range(NUM_BLOCKS)]
    out = [(3, 5), (0, 6), (11, 7), (7, 1), (2, 0)]
    assert swap.send(out) is not None
    for cache in caches:
        cache.fill_randomly()  # the step writes to the blocks at once
    assert swap.fetch([], is_read=False) is None
    swap.beside()
    assert swap.send([]) is None
    filled = [contents(caches, block) for block in range(NUM_BLOCKS)]
    back = [(5, 8), (6, 9), (7, 10), (1, 3), (0, 11)]
    assert swap.send([]) is None
    assert (swap.fetch(back, is_read=False) is None) == (device == "cuda")
    swap.beside()
    if device == "cuda":
        assert swap.send([]) is not None  # waits for what has come back beside the step before
        torch.cuda.synchronize()
    targets = {block: source for (source, host), (other, block) in zip(out, back, strict=True) if host == other}
    for block in range(NUM_BLOCKS):
        expected = before[targets[block]] if block in targets else filled[block]
        assert is_equal(contents(caches, block), expected)


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_what_goes_out_comes_back_in_the_same_step_to_whom_reads_it(device):
    caches = make_caches(torch.float32, device)
    swap = Swap(caches, BLOCK_SIZE, 4)
    expected = contents(caches, 2)
    assert swap.send([(2, 3)]) is not None
    assert swap.fetch([(3, 8)], is_read=True) is not None
    assert (swap.later, swap.arrived) == ([], None)
    assert is_equal(contents(caches, 8), expected)


def test_who_reads_what_comes_back():
    assert reads(batch_of([1, 2], [3]), [(0, 3)])
    assert not reads(batch_of([1, 2], [3]), [(3, 4)])
    assert not reads(batch_of([1, 2]), [])


def test_blocks_that_follow_each_other_are_copied_at_once():
    assert list(runs([4, 5, 6, 2, 3, 0])) == [(0, 3), (3, 5), (5, 6)]
    assert list(runs([7])) == [(0, 1)]


def test_a_space_without_a_cache_is_refused_and_so_is_one_that_the_host_does_not_have():
    with pytest.raises(ValueError, match=r"engine\.num_swap_blocks must be at least 0, not -1"):
        check_swap(-1, use_cache=True)
    with pytest.raises(ValueError, match=r"engine\.num_swap_blocks=3 needs a KV cache, and use_cache=false keeps none"):
        check_swap(3, use_cache=False)
    with pytest.raises(ValueError, match=r"engine\.num_swap_blocks=1000000000000000 blocks .* cannot be allocated"):
        Swap(make_caches(torch.float32), BLOCK_SIZE, 10**15)


def serve(engine, requests, **options):
    given = {
        "steps": "mixed",
        "max_num_batched_tokens": 40,
        "whole_prompts": False,
        "watermark": 0.0,
        "max_num_seqs": 6,
    }
    scheduler = make_scheduler(partial(ContinuousScheduler, **given | options), engine)
    return replay_trace(requests, scheduler, engine)


def test_steps_that_swap_say_what_they_waited():
    """On a CPU nothing happens beside a step."""
    engine = make_tiny(config=TINY_CONFIG, block_size=7, num_blocks=8, num_swap_blocks=9)
    _, steps = serve(engine, make_arrivals(), preemption="swap", max_num_batched_tokens=16)
    has_copies = [step.num_swapped_out_blocks + step.num_swapped_in_blocks > 0 for step in steps]
    assert any(has_copies)
    assert [step.swap_wait > 0 for step in steps] == has_copies
    assert all(step.swap_wait < step.elapsed for step in steps)


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("prefix_cache", [None, "lru"])
def test_swaps_on_a_gpu_with_graphs_change_no_token(prefix_cache, overlap):
    """Prompts in chunks, adapters, and blocks that a prefix cache shares; twice, so that seats are used again."""
    requests = with_equal_beginnings([None, "a", "b"])
    expected = [one.output_token_ids for one in serve(make_engine(device="cuda", **EXACT), requests, max_num_seqs=1)[0]]
    with float32_through(kernels=True):
        engine = make_engine(overlap=overlap, **EXACT)
        engine.num_blocks = 7  # of 16 tokens
        for _ in range(2):
            sequences, steps = serve(engine, requests, preemption="swap", prefix_cache=prefix_cache)
            assert [one.output_token_ids for one in sequences] == expected
            assert sum(one.num_swaps for one in sequences) > 3
            copied = [step.num_swapped_out_blocks for step in steps]
            assert sum(copied) > 6
            assert all(step.swap_wait > 0 for step, num in zip(steps, copied, strict=True) if num)
    assert sum(one.num_cached_tokens for one in sequences) > 0 or prefix_cache is None
