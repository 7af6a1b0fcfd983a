"""Adapters and sequences in one memory: nobody loses a block that is in use, and nobody waits for ever."""

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.build import make_scheduler, replay_trace
from framework.core import Request, Sequence
from framework.scheduler.adapter_slots import AdapterSlots
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from tests.fake_engine import FakeEngine
from tests.scheduler.event_logs import step_time


class SharedEngine(FakeEngine):
    """Keeps what lies in every block, an adapter or a sequence's slots, and refuses a batch that finds another's."""

    def __init__(self, num_blocks, num_slots, blocks_per_adapter, num_steps_ahead=0):
        super().__init__(step_time, num_blocks, num_steps_ahead=num_steps_ahead)
        self.num_adapter_slots, self.blocks_per_adapter = num_slots, blocks_per_adapter
        self.contents = [None] * num_blocks
        self.log = []

    def launch(self, batch):
        used = {sequence.adapter_slot for sequence in batch.sequences}
        ahead = {slot: name for slot, name in batch.adapter_loads.items() if slot not in used}
        self.load({slot: name for slot, name in batch.adapter_loads.items() if slot in used})
        for sequence, start, num_tokens in zip(batch.sequences, batch.starts, batch.num_tokens, strict=True):
            if not sequence.is_finished and sequence.request.adapter_id is not None and self.num_adapter_slots:
                first = (sequence.adapter_slot - 1) * self.blocks_per_adapter
                found = self.contents[first : first + self.blocks_per_adapter]
                assert found == [sequence.request.adapter_id] * self.blocks_per_adapter
            for place in range(start // self.block_size, -(-(start + num_tokens) // self.block_size)):
                block = sequence.block_table[place]
                is_new = start <= place * self.block_size
                assert is_new or self.contents[block] is sequence
                self.contents[block] = sequence
        self.load(ahead)
        super().launch(batch)
        self.log.append((*self.batches[-1], batch.adapter_loads))

    def load(self, loads):
        for slot, adapter_id in loads.items():
            assert 1 <= slot <= self.num_adapter_slots
            for block in range((slot - 1) * self.blocks_per_adapter, slot * self.blocks_per_adapter):
                self.contents[block] = adapter_id


def run(rows, num_blocks, num_slots=2, blocks_per_adapter=3, make=ContinuousScheduler, **options):
    """The log, and the steps' (blocks of sequences, of adapters), for rows of a request: time, tokens, adapter."""
    engine = SharedEngine(num_blocks, num_slots, blocks_per_adapter)
    requests = [Request(index, *row[:3], adapter_id=row[3]) for index, row in enumerate(rows)]
    options = {"watermark": 0.0} | options if make is ContinuousScheduler else options
    scheduler = make_scheduler(partial(make, **options), engine)
    sequences, steps = replay_trace(requests, scheduler, engine)
    assert scheduler.blocks.num_used == scheduler.num_used_blocks == 0
    return engine.log, [(step.num_used_blocks, step.num_adapter_blocks) for step in steps], sequences


def test_an_adapter_takes_a_range_and_leaves_it_to_a_sequence_that_needs_blocks():
    rows = [(0.0, 4, 1, "a"), (2.0, 16, 12, None)]  # the second one takes 4 blocks, and 3 more as it grows
    log, blocks, sequences = run(rows, num_blocks=7)
    assert log == [("prefill", [0], {1: "a"}), ("prefill", [1], {}), *[("decode", [1], {})] * 11]
    assert blocks == [(1, 3), (4, 3), *[(5, 0)] * 4, *[(6, 0)] * 4, *[(7, 0)] * 3]
    assert sequences[1].num_preemptions == 0


def test_the_adapter_used_least_recently_goes_first_and_comes_back_by_a_load():
    rows = [(0.0, 4, 1, "a"), (2.0, 4, 1, "b"), (4.0, 4, 1, "c"), (6.0, 4, 1, "b"), (8.0, 4, 1, "a")]
    log, blocks, _ = run(rows, num_blocks=7)
    assert [loads for _, _, loads in log] == [{1: "a"}, {2: "b"}, {1: "c"}, {}, {1: "a"}]
    assert blocks == [(1, 3), (1, 6), (1, 6), (1, 6), (1, 6)]


def test_a_request_waits_for_the_blocks_of_its_adapter():
    """The first takes 4 of 6 blocks: 3 for the adapter of the second are free once it has ended."""
    log, blocks, _ = run([(0.0, 12, 3, None), (0.5, 4, 1, "a")], num_blocks=6)
    assert log == [("prefill", [0], {}), *[("decode", [0], {})] * 2, ("prefill", [1], {1: "a"})]
    assert blocks == [(3, 0), (4, 0), (4, 0), (1, 3)]


def test_enough_blocks_without_a_whole_range_are_waited_for():
    """After the first step blocks 5, 3 and 1 are free, one of each range: enough for the prompt and the adapter."""
    others = [(0.0, 2, 1, None), (0.0, 2, 3, None)] * 3
    log, blocks, _ = run([*others, (0.5, 4, 1, "a")], num_blocks=6, blocks_per_adapter=2, num_slots=3)
    decode = ("decode", [1, 3, 5], {})
    assert log == [("prefill", [0, 1, 2, 3, 4, 5], {}), decode, decode, ("prefill", [6], {1: "a"})]
    assert blocks == [(6, 0), (3, 0), (3, 0), (1, 2)]
    log, _, _ = run([*others, (0.5, 12, 1, None)], num_blocks=6, blocks_per_adapter=2, num_slots=3)
    assert log[1] == ("prefill", [6], {})  # three blocks without an adapter


def test_a_static_batch_has_adapters_first_and_is_as_large_as_both_fit():
    rows = [(0.0, 4, 4, "a"), (0.0, 4, 4, "b"), (0.0, 4, 4, None)]
    log, blocks, _ = run(rows, num_blocks=9, make=StaticScheduler, max_num_seqs=3, max_wait=0.0)
    assert [ids for phase, ids, _ in log if phase == "prefill"] == [[0], [1, 2]]
    log, blocks, _ = run(rows, num_blocks=12, make=StaticScheduler, max_num_seqs=3, max_wait=0.05)
    assert [ids for phase, ids, _ in log if phase == "prefill"] == [[0, 1, 2]]
    assert blocks == [(6, 6)] * 4


def test_what_a_prefix_cache_keeps_goes_for_an_adapter_only_where_no_sequence_uses_it():
    scheduler = ContinuousScheduler(
        6, 4, num_adapter_slots=2, blocks_per_adapter=3, prefix_cache="lru", watermark=0.0, max_num_seqs=1
    )
    assert scheduler.blocks.vacate(0, 3)
    scheduler.blocks.admit(Sequence(Request(0, 0.0, 4, 1)))
    assert not scheduler.blocks.vacate(3, 6)
    rows = [(0.0, 20, 2, None), (2.0, 4, 1, "a"), (4.0, 20, 2, None)]
    log, blocks, sequences = run(rows, num_blocks=6, prefix_cache="lru", max_num_seqs=1)
    assert [loads for _, _, loads in log if loads] == [{1: "a"}]
    assert [sequence.num_cached_tokens for sequence in sequences] == [0, 0, 0]
    assert blocks[2] == (1, 3)


def test_what_fits_only_without_its_adapter_is_refused():
    scheduler = ContinuousScheduler(6, 4, num_adapter_slots=2, blocks_per_adapter=3)
    scheduler.check(Request(0, 0.0, 20, 4))
    scheduler.check(Request(1, 0.0, 8, 4, adapter_id="a"))
    with pytest.raises(ValueError, match="which has 6 KV blocks of 4 tokens, 3 of them for its adapter"):
        scheduler.check(Request(2, 0.0, 9, 4, adapter_id="a"))
    with pytest.raises(ValueError, match="2 adapter slots of 4 KV blocks are more than the cache's 6"):
        ContinuousScheduler(6, 4, num_adapter_slots=2, blocks_per_adapter=4)
    with pytest.raises(ValueError, match=r"max_loras 3 is more than the 2 adapters .* of 6 blocks"):
        ContinuousScheduler(6, 4, num_adapter_slots=2, blocks_per_adapter=3, max_loras=3)


def test_what_is_promised_has_room_beside_the_adapter_or_is_refused():
    scheduler = ContinuousScheduler(6, 4, num_adapter_slots=1, blocks_per_adapter=3, reservation="pow2")
    scheduler.check(Request(0, 0.0, 4, 5, adapter_id="a"))
    with pytest.raises(ValueError, match=r"reservation=pow2 promises it more .* 6 KV blocks of 4 tokens, 3 of"):
        scheduler.check(Request(1, 0.0, 5, 5, adapter_id="a"))


def test_a_scheduler_that_shares_no_blocks_is_refused():
    with pytest.raises(ValueError, match=r"lora.memory=unified: .*no keyword blocks_per_adapter.*memory=split"):
        make_scheduler(lambda num_blocks, block_size, num_adapter_slots: None, SharedEngine(6, 1, 2))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.floats(0, 9), st.integers(1, 20), st.integers(1, 9), st.sampled_from([None, "a", "b", "c", "d"])),
        min_size=1,
        max_size=20,
    ),
    num_slots=st.integers(1, 4),
    blocks_per_adapter=st.integers(1, 4),
    spare=st.integers(0, 9),
    data=st.data(),
)
def test_no_block_has_two_owners_and_every_request_ends(rows, num_slots, blocks_per_adapter, spare, data):
    requests = [
        Request(index, *row[:3], adapter_id=row[3], prefix_ids=(row[1] % 2,) * min(row[1] // 4, 3), prefix_block_size=4)
        for index, row in enumerate(sorted(rows, key=lambda row: row[0]))
    ]
    needed = max(-(-(prompt + output) // 4) for _, prompt, output, _ in rows)
    longest = -(-(max(row[1] for row in rows) + max(row[2] for row in rows)) // 4)
    num_blocks = max(max(needed, longest) + blocks_per_adapter, num_slots * blocks_per_adapter) + spare
    options = {"max_num_seqs": data.draw(st.integers(1, 6))}
    make = data.draw(st.sampled_from([StaticScheduler, ContinuousScheduler, ContinuousScheduler]))
    if make is ContinuousScheduler:
        options |= {"watermark": data.draw(st.sampled_from([0.0, 0.1])), "prefetch": data.draw(st.booleans())}
        options |= {"max_num_batched_tokens": data.draw(st.integers(6, 30)), "whole_prompts": data.draw(st.booleans())}
        options |= {"steps": data.draw(st.sampled_from(["prompts_first", "mixed", "alternate"]))}
        options |= {"prefix_cache": data.draw(st.sampled_from([None, "lru", "lfu"]))}
        options |= {"reservation": data.draw(st.sampled_from(["paged", "paged", "oracle"]))}
        options |= {"adapter_cycle_time": data.draw(st.sampled_from([None, 0.5]))}
    engine = SharedEngine(num_blocks, num_slots, blocks_per_adapter, data.draw(st.integers(0, 1)))
    scheduler = make_scheduler(partial(make, **options), engine)
    schedule = scheduler.schedule

    def checked(now):
        batch = schedule(now)
        held = {block for one in [*scheduler.running, *getattr(scheduler, "ending", [])] for block in one.block_table}
        ranges = scheduler.adapters.slot_of.values()
        of_adapters = {(slot - 1) * blocks_per_adapter + i for slot in ranges for i in range(blocks_per_adapter)}
        assert not held & of_adapters
        assert (len(held), len(of_adapters)) == (scheduler.num_used_blocks, scheduler.num_adapter_blocks)
        use = scheduler.slot_use
        assert use.num_free >= 0
        assert sum(use) == 4 * (num_blocks - len(of_adapters) - scheduler.num_cached_blocks)
        assert set(ranges) <= set(range(1, num_slots + 1))
        return batch

    scheduler.schedule = checked
    sequences, _ = replay_trace(requests, scheduler, engine)
    assert all(sequence.is_finished and sequence.adapter_slot == 0 for sequence in sequences)
    assert scheduler.blocks.num_used == scheduler.num_used_blocks == 0
    assert scheduler.blocks.num_free == num_blocks


def test_slots_of_their_own_take_no_blocks():
    assert AdapterSlots(2).num_blocks_of(Request(0, 0.0, 1, 1, adapter_id="a")) == 0
