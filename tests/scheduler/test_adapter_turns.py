"""Event logs of adapters that take turns, and of first come, first served; prefills take 1 s, decodes 0.125 s."""

from collections import deque
from functools import partial

import pytest

from framework.build import make_scheduler, replay_trace
from framework.core import Request, Sequence
from framework.measure.fairness import adapter_table
from framework.measure.replay_tables import request_table
from framework.scheduler.adapter_turns import AdapterTurns
from framework.scheduler.continuous import ContinuousScheduler
from tests.fake_engine import FakeEngine


def serve(rows, num_slots, **options):
    """Requests from (arrival_time, num_output_tokens, adapter_id) of four prompt tokens each."""
    engine = FakeEngine(lambda batch: 1.0 if batch.phase == "prefill" else 0.125)
    engine.num_adapter_slots = num_slots
    requests = [Request(index, row[0], 4, row[1], adapter_id=row[2]) for index, row in enumerate(rows)]
    scheduler = make_scheduler(partial(ContinuousScheduler, **options), engine)
    sequences, steps = replay_trace(requests, scheduler, engine)
    return sequences, [(step.start_time, *batch) for step, batch in zip(steps, engine.batches, strict=True)]


MIXED = [(0.0, 3, "a"), (0.0, 2, "b"), (0.0, 2, "a"), (0.0, 1, "b"), (1.5, 2, "a")]


def test_first_come_is_the_default_and_changes_adapters_with_every_request():
    _, log = serve(MIXED, num_slots=1)
    assert [ids for _, phase, ids in log if phase == "prefill"] == [[0], [1], [2], [3], [4]]


def test_requests_of_an_adapter_go_together_until_its_time_is_over():
    _, log = serve(MIXED, num_slots=1, adapter_cycle_time=1.5)
    assert log == [
        (0.0, "prefill", [0, 2]),  # a, though 1 came before 2
        (1.0, "decode", [0, 2]),
        (1.125, "decode", [0]),
        (1.25, "prefill", [1, 3]),  # nothing of a waits or runs, so b need not wait for the end of its time
        (2.25, "decode", [1]),
        (2.375, "prefill", [4]),
        (3.375, "decode", [4]),
    ]


def test_when_the_time_is_over_what_runs_ends_before_the_next_turn():
    rows = [(0.0, 4, "a"), (0.0, 1, "b"), (1.0625, 2, "a"), (1.25, 1, None)]
    _, log = serve(rows, num_slots=1, adapter_cycle_time=1.0)
    assert log == [
        (0.0, "prefill", [0]),
        (1.0, "decode", [0]),
        (1.125, "decode", [0]),  # 2 wants the adapter that is there, but its time is over
        (1.25, "prefill", [3]),  # which needs none
        (2.25, "decode", [0]),
        (2.375, "prefill", [1]),
        (3.375, "prefill", [2]),
        (4.375, "decode", [2]),
    ]


def test_an_adapter_goes_on_while_no_other_waits():
    rows = [(0.0, 1, "a"), (1.5, 1, "a"), (1.75, 1, "a")]
    _, log = serve(rows, num_slots=1, adapter_cycle_time=0.5)
    assert log == [(0.0, "prefill", [0]), (1.5, "prefill", [1]), (2.5, "prefill", [2])]


def test_without_slots_there_are_no_turns():
    _, log = serve(MIXED, num_slots=0, adapter_cycle_time=1.5)
    assert log[0] == (0.0, "prefill", [0, 1, 2, 3])


def test_a_busy_adapter_no_longer_keeps_a_rare_one_waiting():
    """One seat and one slot: twelve requests of `a` are there before the two of `b`."""
    rows = [*[(0.0, 1, "a")] * 12, (0.5, 1, "b"), (0.5, 1, "b")]
    waits = {}
    for cycle_time in (None, 2.0):
        sequences, _ = serve(rows, num_slots=1, max_num_seqs=1, adapter_cycle_time=cycle_time)
        waits[cycle_time] = adapter_table(request_table(sequences)).set_index("adapter_id")["ttft_mean"]
    assert waits[None].to_dict() == {"a": 6.5, "b": 13.0}
    assert waits[2.0].to_dict() == {"a": pytest.approx((3 + sum(range(5, 15))) / 12), "b": 3.0}


def sequences(*names, start=0):
    return [Sequence(Request(index, 0.0, 1, 1, adapter_id=name)) for index, name in enumerate(names, start)]


def ids(waiting):
    return [sequence.request.request_id for sequence in waiting]


def waiting_for(*names, max_loras):
    turns = AdapterTurns(max_loras, cycle_time=1.0)
    for sequence in sequences(*names):
        turns.append(sequence)
    return turns


def test_only_so_many_turns_end_as_adapters_wait():
    turns = waiting_for("a", "c", "b", None, "a", max_loras=2)
    turns.update([], 0.0)
    assert ids(turns) == [0, 1, 3, 4, 2]
    assert list(turns.since) == ["a", "c"]
    assert ids(turns.popleft() for _ in range(3)) == [0, 1, 3]
    assert len(turns) == 2
    [late] = sequences("c", start=5)
    turns.append(late)
    turns.update(["a", "c"], 1.0)  # one ends, the one that is first
    assert ids(turns) == [5, 2, 4]
    assert (list(turns.since), list(turns.upcoming)) == (["c"], ["b", "a"])
    turns.update(["a", "c"], 2.0)  # a's slot is b's as soon as a runs no longer
    assert (list(turns.since), list(turns.upcoming)) == (["c"], ["b", "a"])
    turns.update(["c"], 2.5)
    assert (list(turns.since), list(turns.upcoming)) == (["b"], ["a", "c"])  # one more ends, and c's slot will be a's
    assert ids(turns) == [2, 4, 5]


def test_what_is_preempted_is_first_and_can_be_taken_out():
    turns = waiting_for("a", "b", "a", max_loras=1)
    turns.update([], 0.0)
    first = turns.popleft()
    turns.appendleft(first)
    assert ids(turns) == [0, 2, 1]
    [late] = sequences("b", start=3)
    turns.append(late)
    assert ids(turns) == [0, 2, 1, 3]
    turns.update(["a"], 0.5)
    turns.remove(late)
    assert first in turns
    turns.remove(first)
    assert ids(turns) == [2, 1]
    assert first not in turns


@pytest.mark.parametrize("num_waiting", [1_000, 100_000])
def test_a_schedule_looks_at_adapters_not_at_all_that_wait(num_waiting):
    """Every sequence is looked at once when it arrives; a schedule with a free seat then sees a few."""
    looked_at = []
    turns = waiting_for(*(f"adapter-{index % 20}" for index in range(num_waiting)), max_loras=4)
    turns.update([], 0.0)
    queues = {name: Watched(queue, looked_at) for name, queue in turns.queues.items()}
    turns.queues = queues
    for step in range(50):
        turns.update(list(turns.since), 0.5 * step)
        turns.popleft()
    assert len(looked_at) < 50 * 20


class Watched(deque):
    """Notes what is looked at while it is gone through."""

    def __init__(self, items, looked_at):
        super().__init__(items)
        self.looked_at = looked_at

    def __iter__(self):
        for item in super().__iter__():
            self.looked_at.append(item)
            yield item


@pytest.mark.parametrize("cycle_time", [0.0, -1.0, float("nan")])
def test_a_turn_takes_time(cycle_time):
    with pytest.raises(ValueError, match="adapter_cycle_time must be a positive number of seconds"):
        ContinuousScheduler(10, 4, adapter_cycle_time=cycle_time, num_adapter_slots=1)
