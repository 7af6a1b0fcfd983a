"""Swapping by hand, and what every sequence finds behind its tokens when blocks go to the host and come back.

Blocks have 4 tokens; a step with a prompt takes 1 s, one of decodes 0.125 s.
"""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.build import replay_trace
from framework.core import Request, Sequence
from framework.scheduler.block_manager import BlockManager
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.prefix_cache import PrefixCache
from framework.scheduler.swap_space import SwapSpace
from tests.fake_engine import requests_at
from tests.scheduler.event_logs import OnlyTheFirst, RowsEngine
from tests.scheduler.prefix_workloads import Memory, named, workloads

MAX_MODEL_LEN = 128
SWAP = {"preemption": "swap", "num_swap_blocks": 8, "watermark": 0.0}


class CopiesEngine(RowsEngine):
    """Keeps how many blocks go out and come back with each step."""

    def launch(self, batch):
        super().launch(batch)
        self.rows[-1] += (len(batch.swap_out), len(batch.swap_in))


def serve(requests, num_blocks, num_steps_ahead=0, **options):
    """(start in s, ids that decode, prompts, blocks that go out, blocks that come back) of every step."""
    engine = CopiesEngine(num_blocks=num_blocks, num_steps_ahead=num_steps_ahead)
    scheduler = ContinuousScheduler(num_blocks, engine.block_size, **SWAP | options)
    sequences, steps = replay_trace(requests, scheduler, engine)
    assert scheduler.num_used_blocks == scheduler.num_unfinished == 0
    assert (len(scheduler.swap.free), scheduler.swap.tables) == (scheduler.swap.num_blocks, {})
    copied = [(step.num_swapped_out_blocks, step.num_swapped_in_blocks) for step in steps]
    assert copied == [rows[2:] for rows in engine.rows]
    return sequences, [(step.start_time, *rows) for step, rows in zip(steps, engine.rows, strict=True)]


def counts(sequences):
    return [(sequence.num_preemptions, sequence.num_swaps) for sequence in sequences]


def test_who_comes_back_joins_the_step_after_the_one_beside_its_copy():
    sequences, log = serve(requests_at((0.0, 4, 9), (0.0, 4, 6), (0.0, 4, 6)), num_blocks=6)
    assert log == [
        (0.0, [], [(0, 0, 4), (1, 0, 4), (2, 0, 4)], 0, 0),
        (1.0, [0, 1, 2], [], 0, 0),
        (1.125, [0, 1, 2], [], 0, 0),
        (1.25, [0, 1, 2], [], 0, 0),
        (1.375, [0, 1, 2], [], 0, 0),
        (1.5, [0, 1], [], 2, 0),  # their third blocks were those of 2
        (1.625, [0], [], 0, 2),  # 1 has ended
        (1.75, [0, 2], [], 0, 0),
        (1.875, [0], [], 0, 0),
    ]
    assert counts(sequences) == [(0, 0), (0, 0), (1, 1)]


@pytest.mark.parametrize("num_steps_ahead", [0, 1])
def test_with_nothing_else_to_run_it_joins_at_once(num_steps_ahead):
    """A step that is chosen before the tokens of the one before it finds its blocks taken: there is one more."""
    sequences, log = serve(requests_at((0.0, 4, 6), (0.0, 4, 6)), 4, num_steps_ahead)
    assert log[5:] == [(1.5, [0], [], 2, 0), (1.625, [1], [], 0, 2)]
    assert counts(sequences) == [(0, 0), (1, 1)]
    assert [sequence.token_times[-1] for sequence in sequences] == [1.625, 1.75]


@pytest.mark.parametrize(("num_swap_blocks", "num_swaps"), [(3, 0), (4, 1)])
def test_without_room_on_the_host_it_is_recomputed_and_counted(num_swap_blocks, num_swaps):
    """Of four with two blocks each and none left, 3 gives its own to 0 and 1, and 2 finds no other one."""
    sequences, log = serve(requests_at(*[(0.0, 4, 6)] * 4), 8, num_swap_blocks=num_swap_blocks)
    assert log[5] == (1.5, [0, 1], [], 2 + 2 * num_swaps, 0)
    assert counts(sequences) == [(0, 0), (0, 0), (1, num_swaps), (1, 1)]


def test_a_prompt_in_chunks_goes_on_where_it_was():
    """As test_a_prompt_in_chunks_is_the_first_to_be_preempted in test_conf.py, where 10 of its 12 tokens are lost."""
    options = {"steps": "mixed", "max_num_seqs": 2, "max_num_batched_tokens": 3, "whole_prompts": False}
    _, log = serve(requests_at((0.0, 4, 6), (0.5, 12, 1)), 5, **options)
    assert log[5:] == [(5.0, [0], [(1, 8, 10)], 0, 0), (6.0, [0], [], 3, 0), (6.125, [], [(1, 10, 12)], 0, 3)]


def test_nobody_is_admitted_before_it():
    """When 1 has ended, its blocks would do for 3."""
    requests = requests_at((0.0, 4, 9), (0.0, 4, 6), (0.0, 4, 9), (1.55, 4, 1))
    _, log = serve(requests, num_blocks=6)
    order = [ids for _, decoding, prompts, *_ in log[6:] for ids in (decoding, [one[0] for one in prompts]) if ids]
    assert order.index([3]) > order.index([0, 2])


def test_what_a_prefix_cache_still_has_is_not_copied_back():
    """1 finds the first of its two blocks; the other one was taken by 0."""
    requests = [Request(0, 0.0, 4, 6), Request(1, 0.0, 4, 6)]
    _, log = serve(requests, 4, prefix_cache="lru")
    assert log[5:] == [(1.5, [0], [], 2, 0), (1.625, [1], [], 0, 1)]


def test_a_prefix_cache_finds_what_has_come_back():
    cache, swap = PrefixCache(4, 4, "lru", has_adapters=False), SwapSpace("swap", 2)
    sequence = Sequence(named(0, 0.0, 9, 4, 7, 8))
    cache.admit(sequence)
    sequence.num_computed_tokens = 8  # nothing is known of it yet
    assert swap.put(sequence, cache)
    cache.release(sequence)
    swap.bring(sequence, cache)
    ((run, num_found),) = cache.find(Sequence(named(1, 0.0, 9, 4, 7, 8)))
    assert run.blocks[:num_found] == sequence.block_table[:2]
    assert swap.take_copies() == ([(0, 0), (1, 1)], [(0, sequence.block_table[0]), (1, sequence.block_table[1])])
    assert swap.take_copies() == ([], [])


def test_an_end_while_it_is_out_gives_the_host_blocks_back_and_copies_nothing():
    blocks, swap = BlockManager(4, 4), SwapSpace("swap", 3)
    sequence = Sequence(Request(0, 0.0, 9, 4))
    blocks.admit(sequence)
    sequence.num_computed_tokens = 9
    assert swap.put(sequence, blocks)
    swap.drop(sequence)
    assert (sorted(swap.free), swap.take_copies()) == ([0, 1, 2], ([], []))


def test_an_unknown_preemption_and_too_small_a_space_are_refused():
    with pytest.raises(ValueError, match=r"scheduler\.preemption='copy' is not one of recompute, swap"):
        ContinuousScheduler(10, 4, preemption="copy")
    scheduler = ContinuousScheduler(10, 4, preemption="swap", num_swap_blocks=2)
    scheduler.check(Request(0, 0.0, 4, 4))
    message = r"longer than the swap space of scheduler\.preemption=swap, which has 2 blocks of 4 tokens \(raise engine"
    with pytest.raises(ValueError, match=message):
        scheduler.check(Request(0, 0.0, 4, 5))
    ContinuousScheduler(10, 4, num_swap_blocks=2).check(Request(0, 0.0, 4, 5))


class Swapping(Memory):
    """What comes back beside a step is there when the next one begins, and not before."""

    def begin(self, *args):
        super().begin(*args)
        self.on_host, self.coming, self.num_copies = {}, [], 0

    def launch(self, batch):
        self.copy_back(self.coming)
        for block, host_block in batch.swap_out:
            self.on_host[host_block] = [self.slots.get(slot) for slot in self.slots_of(block)]
        for slot in batch.adapter_loads:
            first = (slot - 1) * self.blocks_per_adapter * self.block_size
            self.slots |= dict.fromkeys(range(first, first + self.blocks_per_adapter * self.block_size))
        self.coming = batch.swap_in
        self.num_copies += len(batch.swap_in)
        blocks = {block for _, block in batch.swap_in}
        for block in blocks:
            self.slots |= dict.fromkeys(self.slots_of(block))
        if any(not blocks.isdisjoint(sequence.block_table) for sequence in batch.sequences):
            self.copy_back(self.coming)
            self.coming = []
        super().launch(batch)

    def copy_back(self, pairs):
        for host_block, block in pairs:
            self.slots.update(zip(self.slots_of(block), self.on_host[host_block], strict=True))

    def slots_of(self, block):
        return range(block * self.block_size, (block + 1) * self.block_size)


class Counted(ContinuousScheduler):
    """Counts the blocks of the device and the host after each decision."""

    def schedule(self, now):
        batch = super().schedule(now)
        blocks, swap = self.blocks, self.swap
        running = [*self.running, *self.ending]
        held = {block for sequence in running for block in sequence.block_table}
        runs = blocks.run_of if isinstance(blocks, PrefixCache) else {}
        unused = {block for block, run in runs.items() if not run.num_users}
        assert not held & unused
        assert (len(held), len(unused)) == (blocks.num_used, blocks.num_cached)
        assert len(held) + len(unused) + blocks.num_empty + blocks.num_adapter_blocks == blocks.num_blocks
        if isinstance(blocks.free, list):
            assert not (held | unused) & set(blocks.free)
        on_host = [block for table in swap.tables.values() for block in table] + swap.free
        assert sorted(on_host) == list(range(swap.num_blocks))
        first = set(islice(self.waiting, 100))
        assert all(not sequence.block_table for sequence in first)
        assert swap.tables.keys() <= first
        return batch


def check(requests, num_blocks, block_size=4, num_steps_ahead=0, num_adapter_slots=0, blocks_per_adapter=0, **options):
    engine = Swapping(num_blocks, block_size, num_steps_ahead)
    engine.num_adapter_slots, engine.blocks_per_adapter = num_adapter_slots, blocks_per_adapter
    options = {"watermark": 0.0, "max_num_seqs": 4, "max_model_len": MAX_MODEL_LEN} | options
    options |= {"num_adapter_slots": num_adapter_slots, "blocks_per_adapter": blocks_per_adapter}
    scheduler = Counted(num_blocks, block_size, **options)
    sequences, steps = replay_trace(requests, scheduler, engine)
    for sequence in sequences:
        (stop,) = sequence.request.stop_token_ids or {1 << 40}
        assert sequence.output_token_ids == list(range(min(sequence.request.num_output_tokens, stop + 1)))
    assert scheduler.num_unfinished == scheduler.num_used_blocks == len(scheduler.swap.tables) == 0
    assert scheduler.slot_use[:3] == (0, 0, 0)
    return sequences, steps


@settings(max_examples=60, deadline=None)
@given(
    requests=workloads(),
    block_size=st.sampled_from([1, 4, 7]),
    spare=st.integers(0, 12),
    num_steps_ahead=st.integers(0, 1),
    adapters=st.sampled_from([(0, 0), (1, 0), (2, 0), (1, 2), (2, 2)]),
    swap_share=st.sampled_from([1, 3]),
    reservation=st.sampled_from(["paged", "paged", "paged", "max", "pow2", "oracle"]),
    preemption=st.sampled_from(["swap", "swap", "recompute"]),
    prefix_cache=st.sampled_from([None, "lru", "lfu", "fifo"]),
    steps=st.sampled_from(["prompts_first", "mixed", "alternate"]),
    budget=st.sampled_from([6, 40, 2048]),
    whole_prompts=st.booleans(),
)
def test_nobody_finds_others_tokens_and_no_block_is_lost(
    requests, block_size, spare, swap_share, budget, reservation, adapters, **options
):
    """`adapters`: their slots, and the KV blocks of each."""
    longest = max(one.num_prompt_tokens + one.num_output_tokens for one in requests)
    largest = -(-(longest if reservation == "paged" else MAX_MODEL_LEN) // block_size)
    options |= {"num_swap_blocks": swap_share * largest, "max_num_batched_tokens": budget, "reservation": reservation}
    num_slots, blocks_per_adapter = adapters
    options |= {"num_adapter_slots": num_slots, "blocks_per_adapter": blocks_per_adapter}
    check(requests, largest + spare + num_slots * blocks_per_adapter, block_size, **options)


def chats(num_requests, rng):
    """Turns of some chats, four times what the cache holds: each repeats the one before and has some tokens more."""
    requests, lengths = [], [0] * 64
    for index in range(num_requests):
        chat = int(rng.integers(64))
        lengths[chat] = (lengths[chat] + int(rng.integers(1, 12))) % 40
        ids = tuple(range(100 * chat, 100 * chat + lengths[chat] // 4))
        requests.append(named(index, 0.01 * index, lengths[chat] + 1, int(rng.integers(1, 24)), *ids))
    return requests


@pytest.mark.parametrize("num_requests", [500, pytest.param(100_000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("num_steps_ahead", [0, 1])
def test_under_pressure_no_block_is_lost(num_requests, num_steps_ahead):
    """All requests are there from the start, more or less, so that what a step costs would grow with those waiting."""
    requests = chats(num_requests, np.random.default_rng(0))
    options = {"steps": "mixed", "whole_prompts": False, "max_num_batched_tokens": 32, "prefix_cache": "lru"}
    options |= {"preemption": "swap", "num_swap_blocks": 16, "max_num_seqs": 12}
    sequences, steps = check(requests, 20, 4, num_steps_ahead, **options)
    num_preemptions, num_swaps = np.array(counts(sequences)).sum(axis=0)
    assert 0 < num_swaps < num_preemptions
    assert max(step.num_waiting for step in steps) > 0.5 * num_requests


@pytest.mark.parametrize("num_waiting", [10, 10_000])
def test_a_step_looks_at_none_that_waits_but_the_first(num_waiting):
    scheduler = ContinuousScheduler(6, 4, max_num_seqs=2, prefix_cache="lru", **SWAP)
    scheduler.waiting = OnlyTheFirst()
    for index in range(num_waiting):
        scheduler.add(Sequence(Request(index, 0.0, 7, 9)))
    for step in range(40):
        batch = scheduler.schedule(float(step))
        scheduler.postprocess(batch, [7] * len(batch.sequences), step + 0.5)
    assert len(scheduler.waiting) < num_waiting
