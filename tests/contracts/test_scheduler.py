"""What the Scheduler protocol promises, for every scheduler in conf/scheduler and the README's example."""

import inspect
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import framework.scheduler
from framework.build import make_scheduler, replay_trace
from framework.core import Request, Sequence
from framework.scheduler.orders.fcfs import FirstCome
from framework.scheduler.prefix_cache import PrefixCache
from tests.contracts.implementations import implementations, readme_classes
from tests.fake_engine import FakeEngine, requests_at
from tests.scheduler.orders.shipped import ORDERS, shipped_order
from tests.scheduler.shipped import NAMES, shipped

METHODS = ("check", "add", "schedule", "postprocess")
EXAMPLES = readme_classes(*METHODS)
SCHEDULERS = {name: shipped(name) for name in NAMES} | {one.__name__: partial(one) for one in EXAMPLES}
BLOCK_SIZE = 4
MAX_MODEL_LEN = 32
GUARDED = [shipped_order(name, max_wait=0.2) for name in ("sjf", "srpt", "mlfq")]
GUARDED += [shipped_order("priority", preempts=True), shipped_order("rpm", limit=2, window=0.5)]
OPTIONS = {  # drawn for the schedulers that have them
    "max_num_batched_tokens": st.none() | st.integers(1, 30),
    "watermark": st.floats(0, 0.5),
    "max_wait": st.floats(0, 1),
    "prefetch": st.booleans(),
    "adapter_cycle_time": st.none() | st.floats(0.01, 1),
    "prefix_cache": st.sampled_from([None, "lru", "lfu", "fifo"]),
    "reservation": st.sampled_from(["paged", "paged", "max", "pow2", "oracle"]),
    "preemption": st.sampled_from(["recompute", "swap"]),
    "order": st.just(FirstCome) | st.sampled_from([shipped_order(name) for name in ORDERS]) | st.sampled_from(GUARDED),
    "max_model_len": st.just(MAX_MODEL_LEN),
}
OF_EXAMPLES = {"steps": st.sampled_from(["prompts_first", "mixed", "alternate"]), "whole_prompts": st.booleans()}
each_scheduler = pytest.mark.parametrize("make", SCHEDULERS.values(), ids=list(SCHEDULERS))


@st.composite
def workloads(draw):
    """(requests, blocks of the cache): the largest request fits, two of them perhaps not."""
    row = st.tuples(
        st.floats(0, 5),
        st.integers(1, 20),
        st.integers(1, 12),
        st.sampled_from([None, "a", "b", "c"]),
        st.lists(st.integers(0, 1), max_size=4),
    )
    rows = sorted(draw(st.lists(row, min_size=1, max_size=25)), key=lambda row: row[0])
    size = draw(st.sampled_from([3, 4, 8]))
    requests = [
        Request(
            index,
            *row[:3],
            adapter_id=row[3],
            priority=index % 2,
            prefix_ids=tuple(row[4][: -(-row[1] // size)]),
            prefix_block_size=size,
            client_id=f"client-{index % 3}",
        )
        for index, row in enumerate(rows)
    ]
    largest = max(-(-(prompt + output) // BLOCK_SIZE) for _, prompt, output, *_ in rows)
    return requests, largest + draw(st.integers(0, 10))


def watched(make: partial, **options: object) -> partial:
    """The scheduler with other `options`, and with all that must hold after each of its decisions."""

    class Watched(make.func):
        def __init__(self, num_blocks, block_size, **options):
            super().__init__(num_blocks, block_size, **options)
            self.num_blocks = num_blocks
            self.num_adapter_slots = options.get("num_adapter_slots", 0)
            self.added: list[Sequence] = []
            self.num_in_flight = 0
            self.adapter_in: dict[int, str] = {}
            self.ends: dict[Sequence, int] = {}  # of the computed slots of those that are running
            self.decoding: dict[Sequence, None] = {}  # those whose prompt is computed
            self.decoding_later: dict[Sequence, None] = {}  # and those of them that are on the host
            self.last_phase = "decode"

        def add(self, sequence):
            self.added.append(sequence)
            super().add(sequence)

        def schedule(self, now):
            were_running, num_preemptions = set(self.ends), self.num_preemptions()
            were_decoding = [one for one in self.decoding if one.num_unscheduled_tokens > 0 and not one.is_finished]
            batch = super().schedule(now)
            self.check_decodes_go_on(batch, [one for one in were_decoding if one.block_table])
            self.note_preempted()
            if batch is not None and self.num_preemptions() > num_preemptions + len(getattr(self, "displaced", ())):
                assert were_running.issuperset(batch.sequences), "somebody is admitted in a step that preempts"
            if batch is None:
                assert self.wake_time > now
                assert self.num_in_flight or not self.waiting or self.wake_time < float("inf")
            else:
                self.num_in_flight += 1
                self.check_batch(batch)
            self.check_blocks()
            seated = [one for one in self.added if one.block_table and one.num_unscheduled_tokens > 0]
            assert len(seated) <= self.max_num_seqs
            return batch

        def note_preempted(self):
            """Who was recomputed begins anew; who comes back from the host goes on where it was, behind the others."""
            for sequence in [one for one in self.ends if not one.num_computed_tokens]:
                del self.ends[sequence]
                self.decoding.pop(sequence, None)
            back = [one for one in (*self.running, *self.decoding_later) if one.block_table]
            for sequence in [one for one in dict.fromkeys(back) if one in self.decoding_later]:
                del self.decoding_later[sequence]
                self.decoding[sequence] = None
            for sequence in [one for one in self.decoding if not (one.block_table or one.is_finished)]:
                del self.decoding[sequence]
                self.decoding_later[sequence] = None

        def check_blocks(self):
            """Only a prefix cache's are shared, and no more are in use than there are."""
            held = Counter(block for sequence in self.added for block in sequence.block_table)
            assert len(held) == self.num_used_blocks
            assert set(held) <= set(range(self.num_blocks))
            assert self.num_used_blocks + self.num_cached_blocks <= self.num_blocks
            self.check_slots()
            if not isinstance(getattr(self, "blocks", None), PrefixCache):
                assert max(held.values(), default=1) == 1
                assert self.num_cached_blocks == 0

        def check_slots(self):
            """Each slot of a block is counted once, by who has it."""
            tokens, needed = set(), set()
            for sequence in self.added:
                if not sequence.is_finished:
                    slots = [(block, offset) for block in sequence.block_table for offset in range(BLOCK_SIZE)]
                    end = sequence.num_padding + sequence.request.num_prompt_tokens + sequence.request.num_output_tokens
                    needed |= set(slots[sequence.num_padding : end - 1])
                    tokens |= set(slots[sequence.num_padding : min(sequence.num_computed_tokens, end - 1)])
            use, num_used = self.slot_use, self.num_used_blocks
            assert use[:2] == (len(tokens), len(needed) - len(tokens))
            assert sum(use[:3]) == BLOCK_SIZE * num_used
            assert sum(use) == BLOCK_SIZE * (self.num_blocks - self.num_cached_blocks)

        def num_preemptions(self):
            return sum(sequence.num_preemptions for sequence in self.added)

        def check_decodes_go_on(self, batch, decoding):
            """All of these in a mixed step; in steps that alternate none waits for two steps of prompts."""
            steps = getattr(self, "steps", "prompts_first")
            phase = None if batch is None else batch.phase
            if steps == "mixed" and decoding:
                assert set(batch.sequences[: batch.num_decode_tokens]) == set(decoding)
            if steps == "alternate":
                assert phase in ("prefill", "decode", None)
                assert not decoding or (phase, self.last_phase) != ("prefill", "prefill")
            self.last_phase = phase

        def check_rows(self, batch):
            """Each sequence's slots follow those that are computed, and who decodes stands first."""
            rows = zip(batch.sequences, batch.starts, batch.num_tokens, strict=True)
            for index, (sequence, start, num_tokens) in enumerate(rows):
                assert num_tokens > 0
                if sequence not in self.ends:  # its prompt begins, or what a prefix cache did not have of it
                    assert start == 0 or isinstance(self.blocks, PrefixCache)
                    assert start % BLOCK_SIZE == 0
                    assert sequence.num_preemptions or start == sequence.num_cached_tokens < sequence.num_tokens
                known = self.ends.get(sequence, start)  # a prefix cache may have more of it when it comes back
                assert start == known or (start > known and sequence.num_swaps and isinstance(self.blocks, PrefixCache))
                end = self.ends[sequence] = start + num_tokens
                assert end == sequence.num_computed_tokens <= len(sequence.block_table) * BLOCK_SIZE
                decodes = index < batch.num_decode_tokens
                assert decodes == (sequence in self.decoding)
                assert num_tokens == 1 if decodes else end <= sequence.num_tokens
                if end >= sequence.num_tokens:
                    self.decoding[sequence] = None
                elif getattr(self, "whole_prompts", True):
                    assert len(batch.sequences) == batch.num_decode_tokens + 1

        def check_batch(self, batch):
            self.check_rows(batch)
            assert 0 < len(set(batch.sequences)) == len(batch.sequences) <= self.max_num_seqs
            num_tokens = batch.num_prefill_tokens + batch.num_decode_tokens
            assert sum(batch.num_tokens) == num_tokens
            if self.max_num_batched_tokens is not None:
                assert num_tokens <= max(self.max_num_batched_tokens, self.max_num_seqs)
            self.adapter_in |= batch.adapter_loads
            assert set(self.adapter_in) <= set(range(1, self.num_adapter_slots + 1))
            for sequence in batch.sequences:
                if self.num_adapter_slots and sequence.request.adapter_id and not sequence.is_finished:
                    assert self.adapter_in[sequence.adapter_slot] == sequence.request.adapter_id

        def postprocess(self, batch, token_ids, now):
            self.num_in_flight -= 1
            return super().postprocess(batch, token_ids, now)

    return partial(Watched, **make.keywords | options)


def draw_options(draw, make: partial) -> dict:
    """Seats and what else the scheduler takes; seats that decode within the budget are no more than that has tokens."""
    taken = inspect.signature(make.func).parameters
    values = OPTIONS | (OF_EXAMPLES if make.func in EXAMPLES else {})
    options = {name: draw(value) for name, value in values.items() if name in taken}
    if options.get("adapter_cycle_time") is not None or make.func in EXAMPLES:  # they have orders of their own
        options.pop("order", None)
    budget = options.get("max_num_batched_tokens") or MAX_MODEL_LEN
    if (make.keywords | options).get("steps", "prompts_first") == "prompts_first":
        budget = MAX_MODEL_LEN
    if "num_swap_blocks" in taken:
        options["num_swap_blocks"] = 20
    return options | {"max_num_seqs": draw(st.integers(1, min(6, budget)))}


def enough_blocks(num_blocks: int, options: dict) -> int:
    """For the largest promise, the context, if there is one."""
    is_promised = options.get("reservation", "paged") != "paged"
    return max(num_blocks, MAX_MODEL_LEN // BLOCK_SIZE) if is_promised else num_blocks


def test_every_scheduler_is_in_conf():
    assert {make.func for make in SCHEDULERS.values()} == {*implementations(framework.scheduler, *METHODS), *EXAMPLES}


@each_scheduler
@settings(max_examples=30, deadline=None)
@given(data=st.data(), workload=workloads(), stop=st.integers(0, 15), num_steps_ahead=st.integers(0, 1))
def test_every_request_ends_once_with_exactly_its_tokens(make, data, workload, stop, num_steps_ahead):
    """The fake engine's tokens count from 0, so an output ends with token `stop` if it gets that far."""
    requests, num_blocks = workload
    requests = [replace(request, stop_token_ids=frozenset({stop})) for request in requests]
    options = draw_options(data.draw, make)
    num_blocks = enough_blocks(num_blocks, options)
    engine = FakeEngine(lambda batch: 0.01 * sum(batch.num_tokens), num_blocks, BLOCK_SIZE, num_steps_ahead)
    engine.num_adapter_slots = data.draw(st.integers(0, 3))
    engine.num_swap_blocks = num_blocks + data.draw(st.integers(0, 10))
    scheduler = make_scheduler(watched(make, **options), engine)
    sequences, steps = replay_trace(requests, scheduler, engine)
    assert [sequence.request for sequence in sequences] == requests
    for sequence in sequences:
        assert sequence.output_token_ids == list(range(min(sequence.request.num_output_tokens, stop + 1)))
        times = [sequence.request.arrival_time, sequence.scheduled_time, *sequence.token_times]
        assert all(later >= earlier - 1e-12 for earlier, later in pairwise(times))
        assert len(sequence.token_times) == len(sequence.output_token_ids)
        assert sequence.block_table == []
    assert scheduler.num_used_blocks == scheduler.num_unfinished == 0
    assert not engine.in_flight
    assert sum(step.num_output_tokens for step in steps) == sum(len(one.output_token_ids) for one in sequences)
    ends = [step.start_time + step.elapsed for step in steps]
    assert all(step.start_time >= end - 1e-12 for step, end in zip(steps[1:], ends, strict=False))


@pytest.mark.parametrize("num_steps_ahead", [0, 1])
@each_scheduler
def test_a_cache_too_small_for_what_comes_together(make, num_steps_ahead):
    """Each request fits, and no two of them do to their end: they run one after the other, or are preempted."""
    requests = requests_at(*[(0.1 * index, 4 + index % 3, 9) for index in range(7)])
    engine = FakeEngine(num_blocks=5, block_size=BLOCK_SIZE, num_steps_ahead=num_steps_ahead)
    sequences, _ = replay_trace(requests, watched(make, max_num_seqs=4)(5, BLOCK_SIZE), engine)
    assert [sequence.output_token_ids for sequence in sequences] == [list(range(9))] * 7
    spans = sorted((sequence.scheduled_time, sequence.token_times[-1]) for sequence in sequences)
    run_alone = all(start >= end for (_, end), (start, _) in pairwise(spans))
    assert run_alone != any(sequence.num_preemptions for sequence in sequences)


@pytest.mark.parametrize("scheduler_type", EXAMPLES)
def test_the_readmes_example_admits_the_shortest_after_a_preemption_too(scheduler_type):
    class Checked(watched(partial(scheduler_type)).func):
        def schedule(self, now):
            batch = super().schedule(now)
            if batch is not None and batch.num_prefill_tokens and self.waiting:
                longest = max(sequence.num_tokens for sequence in batch.sequences)
                assert longest <= min(sequence.num_tokens for sequence in self.waiting)
            return batch

    requests = requests_at((0.0, 6, 9), (0.0, 4, 9), (0.0, 5, 9), (0.55, 12, 1), (0.95, 7, 2), (0.95, 3, 2))
    engine = FakeEngine(num_blocks=5, block_size=BLOCK_SIZE)
    sequences, _ = replay_trace(requests, Checked(5, BLOCK_SIZE, max_num_seqs=4), engine)
    assert sum(sequence.num_preemptions for sequence in sequences) > 0
    assert [len(sequence.output_token_ids) for sequence in sequences] == [9, 9, 9, 1, 2, 2]


def test_the_readme_has_an_example():
    assert EXAMPLES


@each_scheduler
def test_what_can_never_fit_is_refused_by_name(make):
    scheduler = make(5, BLOCK_SIZE, max_num_seqs=2)
    scheduler.check(Request(6, 0.0, 10, 10))
    with pytest.raises(ValueError, match=r"longer than the KV cache, which has 5 KV blocks of 4 tokens"):
        scheduler.check(Request(7, 0.0, 11, 10))


@each_scheduler
def test_nothing_to_do_is_no_batch(make):
    scheduler = make(5, BLOCK_SIZE)
    assert scheduler.schedule(3.0) is None
    assert scheduler.wake_time > 3.0
    assert scheduler.num_unfinished == scheduler.num_used_blocks == 0


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(data=st.data(), workload=workloads(), num_steps_ahead=st.integers(0, 1))
def test_first_come_is_first_served(name, data, workload, num_steps_ahead):
    requests, num_blocks = workload
    make = shipped(name)
    options = {key: value for key, value in draw_options(data.draw, make).items() if key != "order"}
    num_blocks = enough_blocks(num_blocks, options)
    engine = FakeEngine(lambda batch: 0.01 * sum(batch.num_tokens), num_blocks, BLOCK_SIZE, num_steps_ahead)
    scheduler = make(num_blocks, BLOCK_SIZE, **options)
    sequences, _ = replay_trace(requests, scheduler, engine)
    starts = [sequence.scheduled_time for sequence in sequences]
    assert starts == sorted(starts)
    if not any(sequence.num_preemptions for sequence in sequences):
        first_tokens = [sequence.token_times[0] for sequence in sequences]
        assert first_tokens == sorted(first_tokens)
