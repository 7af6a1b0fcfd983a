"""A sequence that goes from one scheduler to another: who has which blocks, seat and adapter's slot, and when."""

from functools import partial

import pytest

from framework.core import Request, Sequence
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.orders.mlfq import SkipJoin
from framework.scheduler.orders.vtc import TokenCounters
from tests.scheduler.orders.shipped import shipped_order
from tests.scheduler.shipped import NAMES, shipped


def make_scheduler(**options):
    return ContinuousScheduler(10, 4, **{"watermark": 0.0, "num_adapter_slots": 1} | options)


def make_sequence(num_prompt_tokens=8, num_output_tokens=5, **options):
    return Sequence(Request(0, 0.0, num_prompt_tokens, num_output_tokens, **options))


def prefill(scheduler, sequence):
    """Compute its prompt, and its first token."""
    scheduler.add(sequence)
    batch = scheduler.schedule(0.0)
    assert batch.sequences == [sequence]
    scheduler.postprocess(batch, [0], 1.0)
    return sequence


def decode(scheduler, now=2.0):
    batch = scheduler.schedule(now)
    scheduler.postprocess(batch, [1] * len(batch.sequences), now)
    return batch


def counts(scheduler):
    """Blocks in use, seats, users of adapters, unfinished sequences."""
    return (
        scheduler.num_used_blocks,
        scheduler.num_seated,
        sum(scheduler.adapters.num_users.values()),
        scheduler.num_unfinished,
    )


def test_a_sequence_has_blocks_at_both_ends_until_it_is_copied():
    source, target = make_scheduler(), make_scheduler()
    sequence = prefill(source, make_sequence(adapter_id="a"))
    source.release(sequence)
    assert source.schedule(1.0) is None
    assert counts(source) == (2, 0, 1, 1)
    assert target.can_accept(sequence)
    blocks = target.accept(sequence)
    assert blocks == [0, 1]
    assert counts(target) == (2, 1, 1, 1)
    assert target.schedule(1.0) is None
    source.drop(sequence)
    assert counts(source) == (0, 0, 0, 0)
    target.join(sequence)
    assert (sequence.block_table, sequence.adapter_slot) == (blocks, 1)
    batch = decode(target)
    assert (batch.sequences, batch.starts, batch.adapter_loads) == ([sequence], [8], {1: "a"})
    assert len(sequence.block_table) == 3
    for _ in range(3):
        decode(target)
    assert sequence.is_finished
    assert counts(target) == (0, 0, 0, 0)
    assert source.slot_use == target.slot_use == (0, 0, 0, 40)


def test_who_ends_where_it_was_gives_back_what_was_kept_for_it():
    source, target = make_scheduler(), make_scheduler()
    sequence = prefill(source, make_sequence(adapter_id="a", num_output_tokens=2))
    batch = source.schedule(1.0)
    source.running.append(sequence)  # as if it had more to come; a stop token ends it in the step in flight
    source.ending.remove(sequence)
    target.accept(sequence)
    source.release(sequence)
    source.postprocess(batch, [7], 1.0)
    assert sequence.is_finished
    target.cancel(sequence)
    assert counts(source) == counts(target) == (0, 0, 0, 0)
    assert target.slot_use == (0, 0, 0, 40)


def test_nobody_is_accepted_without_a_seat_a_slot_or_blocks_or_before_one_who_waits():
    sequence = prefill(make_scheduler(), make_sequence(adapter_id="a"))
    seats, slots, blocks, waiting = make_scheduler(max_num_seqs=1), make_scheduler(), make_scheduler(), make_scheduler()
    prefill(seats, make_sequence())
    prefill(slots, make_sequence(adapter_id="b"))
    prefill(blocks, make_sequence(num_prompt_tokens=33))
    waiting.add(make_sequence())
    assert not any(one.can_accept(sequence) for one in (seats, slots, blocks, waiting))
    assert make_scheduler(max_num_seqs=1).can_accept(sequence)


def test_a_seat_that_is_kept_is_taken_by_nobody_else():
    target = make_scheduler(max_num_seqs=1)
    sequence = prefill(make_scheduler(), make_sequence())
    target.accept(sequence)
    target.add(make_sequence())
    assert target.schedule(0.0) is None
    assert not target.can_accept(make_sequence())


def test_a_promise_is_kept_at_the_target_too():
    target = make_scheduler(reservation="oracle")
    sequence = prefill(make_scheduler(), make_sequence(num_output_tokens=9))
    assert len(target.accept(sequence)) == 5  # of 8 + 9 tokens
    assert target.slot_use == (0, 20, 0, 20)


def test_others_find_what_was_copied_in_a_prefix_cache():
    target = make_scheduler(prefix_cache="lru")
    source = make_scheduler(prefix_cache="lru")
    prompt = {"prefix_ids": (1, 2), "prefix_block_size": 4}
    sequence = prefill(source, make_sequence(9, **prompt))
    target.accept(sequence)
    source.release(sequence)
    source.drop(sequence)
    target.join(sequence)
    other = prefill(target, make_sequence(9, **prompt))
    assert other.num_cached_tokens == 8
    assert other.block_table[:2] == sequence.block_table[:2]
    assert (source.num_used_blocks, source.num_cached_blocks) == (0, 2)


@pytest.mark.parametrize("name", ["fcfs", "mlfq", "vtc", "lcf", "vtc_oracle", "srpt", "rpm", "edf", "priority"])
def test_every_order_serves_one_that_never_waited_there(name):
    target = make_scheduler(order=shipped_order(name))
    sequence = prefill(make_scheduler(), make_sequence(client_id="x"))
    target.accept(sequence)
    target.join(sequence)
    while not sequence.is_finished:
        decode(target)
    assert sequence.output_token_ids == [0, 1, 1, 1, 1]


def test_an_order_that_counts_goes_on_counting():
    levels = SkipJoin(num_levels=2, quantum=4, ratio=2, prompt_tokens_per_step=8, max_wait=None)
    counters = TokenCounters(prompt_weight=1, output_weight=2)
    for order in (levels, counters):
        target = make_scheduler(order=partial(lambda one: one, order))
        sequence = prefill(make_scheduler(), make_sequence(client_id="x"))
        target.accept(sequence)
        target.join(sequence)
        decode(target)
        decode(target)
    assert counters.counters == {"x": 4.0}  # two tokens; another server has charged the prompt
    assert levels.levels[next(iter(levels.levels))][0] == 1  # the prompt counts two steps, and three tokens are there


@pytest.mark.parametrize("name", NAMES)
def test_the_schedulers_that_let_sequences_go(name):
    scheduler = shipped(name)(num_blocks=10, block_size=4)
    assert hasattr(scheduler, "accept") == (name != "static")
