"""Which adapter is in which slot: one in use never goes, and the least recently used goes first."""

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

NAMES = [None, "a", "b", "c", "d", "e"]


class WatchfulEngine(FakeEngine):
    """Keeps its own account of what is in which slot, and refuses a batch whose adapters are elsewhere."""

    def __init__(self, num_slots, num_steps_ahead):
        super().__init__(lambda batch: 0.01 * sum(batch.num_tokens), num_blocks=200, num_steps_ahead=num_steps_ahead)
        self.num_adapter_slots = num_slots
        self.slots = {}
        self.running = []  # sequences of the steps in flight

    def launch(self, batch):
        for slot, adapter_id in batch.adapter_loads.items():
            assert 1 <= slot <= self.num_adapter_slots
            users = [one for batch in self.running for one in batch.sequences if one.adapter_slot == slot]
            assert not [one for one in users if not one.is_finished and one.request.adapter_id != adapter_id]
            self.slots[slot] = adapter_id
        for sequence in batch.sequences:
            if not sequence.is_finished:
                assert self.slots.get(sequence.adapter_slot) == sequence.request.adapter_id
        self.running.append(batch)
        super().launch(batch)

    def collect(self):
        self.running.pop(0)
        return super().collect()


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.floats(0, 3), st.integers(1, 9), st.integers(1, 9), st.sampled_from(NAMES)),
        min_size=1,
        max_size=25,
    ),
    num_slots=st.integers(1, 4),
    data=st.data(),
)
def test_a_slot_in_use_is_never_given_away(rows, num_slots, data):
    requests = [
        Request(index, *row[:3], adapter_id=row[3]) for index, row in enumerate(sorted(rows, key=lambda row: row[0]))
    ]
    make = data.draw(st.sampled_from([StaticScheduler, ContinuousScheduler]))
    options = {"max_num_seqs": data.draw(st.integers(1, 6))}
    if make is ContinuousScheduler:
        options |= {"max_loras": data.draw(st.integers(1, num_slots)), "prefetch": data.draw(st.booleans())}
        options |= {"adapter_cycle_time": data.draw(st.sampled_from([None, 0.01, 0.5]))}
        options |= {"max_num_batched_tokens": data.draw(st.integers(6, 30)), "watermark": 0.0}
        options |= {"steps": data.draw(st.sampled_from(["prompts_first", "mixed", "alternate"]))}
        options |= {"whole_prompts": data.draw(st.booleans())}
    engine = WatchfulEngine(num_slots, data.draw(st.integers(0, 1)))
    largest = max(-(-(prompt + output) // engine.block_size) for _, prompt, output, _ in rows)
    engine.num_blocks = largest + data.draw(st.integers(0, 5))
    scheduler = make_scheduler(partial(make, **options), engine)
    most = 0
    schedule = scheduler.schedule

    def counted(now):
        nonlocal most
        batch = schedule(now)
        most = max(most, len({one.adapter_slot for one in scheduler.running} - {0}))
        return batch

    scheduler.schedule = counted
    sequences, _ = replay_trace(requests, scheduler, engine)
    assert all(sequence.is_finished and sequence.adapter_slot == 0 for sequence in sequences)
    assert most <= options.get("max_loras", num_slots)
    assert not scheduler.adapters.num_users
    assert sorted([*scheduler.adapters.slot_of.values(), *scheduler.adapters.free]) == list(range(1, num_slots + 1))


def sequence(name):
    return Sequence(Request(0, 0.0, 1, 1, adapter_id=name))


def test_least_recently_used_goes_first():
    slots = AdapterSlots(2)
    for name in ("a", "b", "a"):
        one = sequence(name)
        slots.admit(one)
        slots.release(one)
    assert slots.take_loads() == {1: "a", 2: "b"}
    slots.admit(sequence("c"))
    assert slots.take_loads() == {2: "c"}
    assert slots.can_admit(sequence("a"))


def test_an_adapter_is_used_until_its_last_sequence_ends():
    slots = AdapterSlots(2)
    long, short = sequence("a"), sequence("b")
    slots.admit(long)
    slots.admit(short)
    slots.release(short)
    slots.release(long)
    slots.take_loads()
    slots.admit(sequence("c"))
    assert slots.take_loads() == {2: "c"}


def test_prefetch_keeps_what_is_used_and_what_is_wanted_sooner():
    slots = AdapterSlots(2)
    running = sequence("a")
    slots.admit(running)
    slots.take_loads()
    slots.prefetch([sequence("a"), sequence("b"), sequence("c")])
    assert slots.take_loads() == {2: "b"}
    slots.prefetch([sequence("b"), sequence("c")])  # one slot is used, and what is in the other is wanted sooner
    assert slots.take_loads() == {}
    slots.release(running)
    slots.prefetch([sequence("b"), sequence("c")])
    assert slots.take_loads() == {1: "c"}


class LoggingEngine(WatchfulEngine):
    """Keeps what every batch was to load."""

    def __init__(self, num_slots):
        super().__init__(num_slots, 0)
        self.log = []

    def launch(self, batch):
        super().launch(batch)
        self.log.append((*self.batches[-1], batch.adapter_loads))


@pytest.mark.parametrize("prefetch", [True, False])
def test_the_adapter_of_a_waiting_request_comes_in_a_step_before_its_first(prefetch):
    engine = LoggingEngine(2)
    requests = [Request(0, 0.0, 4, 3, adapter_id="a"), Request(1, 0.0, 4, 1, adapter_id="b")]
    replay_trace(
        requests, make_scheduler(partial(ContinuousScheduler, max_num_seqs=1, prefetch=prefetch), engine), engine
    )
    ahead, needed = ({2: "b"}, {}) if prefetch else ({}, {2: "b"})
    assert engine.log == [
        ("prefill", [0], {1: "a"} | ahead),
        ("decode", [0], {}),
        ("decode", [0], {}),
        ("prefill", [1], needed),
    ]


def test_an_adapter_too_many_waits_and_so_do_those_behind_it():
    engine = WatchfulEngine(2, 0)
    requests = [Request(index, 0.0, 4, 3, adapter_id=name) for index, name in enumerate(["a", "b", "c", "a"])]
    replay_trace(requests, make_scheduler(partial(ContinuousScheduler, max_num_seqs=8), engine), engine)
    assert engine.batches[:4] == [("prefill", [0, 1]), *[("decode", [0, 1])] * 2, ("prefill", [2, 3])]


@pytest.mark.parametrize("max_loras", [0, 3])
def test_max_loras_is_within_the_slots(max_loras):
    with pytest.raises(
        ValueError, match=f"max_loras {max_loras} must be at least 1 and at most lora.num_slots, which is 2"
    ):
        ContinuousScheduler(10, 4, max_loras=max_loras, num_adapter_slots=2)
    ContinuousScheduler(10, 4, max_loras=3)  # no adapters are served
