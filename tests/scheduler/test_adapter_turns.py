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


def sequences(*names):
    return deque(Sequence(Request(index, 0.0, 1, 1, adapter_id=name)) for index, name in enumerate(names))


def ids(waiting):
    return [sequence.request.request_id for sequence in waiting]


def test_only_so_many_turns_end_as_adapters_wait():
    turns = AdapterTurns(max_loras=2, cycle_time=1.0)
    assert ids(turns.update(sequences("a", "c", "b", None, "a"), [], 0.0)) == [0, 1, 3, 4, 2]
    assert list(turns.since) == ["a", "c"]
    assert ids(turns.update(sequences("a", "b", "c"), ["a", "c"], 1.0)) == [2, 1, 0]  # one ends, the one that is first
    assert (list(turns.since), list(turns.upcoming)) == (["c"], ["b", "a"])
    turns.update(sequences("a", "b", "c"), ["a", "c"], 2.0)  # a's slot is b's as soon as a runs no longer
    assert (list(turns.since), list(turns.upcoming)) == (["c"], ["b", "a"])
    turns.update(sequences("a", "b", "c"), ["c"], 2.5)
    assert (list(turns.since), list(turns.upcoming)) == (["b"], ["a", "c"])  # one more ends, and c's slot will be a's


@pytest.mark.parametrize("cycle_time", [0.0, -1.0, float("nan")])
def test_a_turn_takes_time(cycle_time):
    with pytest.raises(ValueError, match="adapter_cycle_time must be a positive number of seconds"):
        ContinuousScheduler(10, 4, adapter_cycle_time=cycle_time, num_adapter_slots=1)
