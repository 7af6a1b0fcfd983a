"""Shared blocks by hand, against a cache after the fact, and against what an engine would find in its memory."""

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.build import replay_trace
from framework.core import Batch, Request, Sequence
from framework.paths import ROOT
from framework.prefixes import named_tokens
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.prefix_cache import PrefixCache
from framework.trace.files import read_mooncake
from framework.trace.transforms import clip
from tests.fake_engine import FakeEngine
from tests.scheduler.event_logs import run_rows
from tests.scheduler.offline_cache import LoggedCache, OfflineCache, tokens_of
from tests.scheduler.prefix_workloads import Memory, named, workloads

EVICTIONS = ["lru", "lfu", "fifo"]
MIXED = {"steps": "mixed", "max_num_batched_tokens": 6, "whole_prompts": False, "max_num_seqs": 4}


def rows(requests, num_blocks=1000, num_steps_ahead=0, **options):
    make = partial(ContinuousScheduler, **{"prefix_cache": "lru", "watermark": 0.0} | options)
    sequences, log = run_rows(requests, make, num_steps_ahead, num_blocks)
    return [sequence.num_cached_tokens for sequence in sequences], log


def test_a_prompt_begins_behind_the_blocks_that_another_one_has_computed():
    requests = [named(0, 0.0, 10, 1, 7, 8, 9), named(1, 2.0, 11, 1, 7, 8, 5), named(2, 4.0, 8, 1, 7, 8)]
    cached, log = rows(requests)
    assert log == [
        (0.0, [], [(0, 0, 10)]),
        (2.0, [], [(1, 8, 11)]),
        (4.0, [], [(2, 4, 8)]),  # its last token is computed, and with it the block
    ]
    assert cached == [0, 8, 4]


def test_the_same_names_behind_others_are_other_blocks():
    requests = [named(0, 0.0, 9, 1, 7, 8), named(1, 2.0, 9, 1, 8, 7), named(2, 4.0, 9, 1, 5, 8)]
    assert rows(requests)[0] == [0, 0, 0]


def test_two_that_are_computed_together_share_nothing():
    assert rows([named(0, 0.0, 9, 4, 7, 8), named(1, 0.0, 9, 4, 7, 8)])[0] == [0, 0]


@pytest.mark.parametrize(("num_steps_ahead", "num_cached"), [(0, 4), (1, 0)])
def test_a_block_is_found_once_its_step_is_over(num_steps_ahead, num_cached):
    """A step that is scheduled ahead, while the one before it runs, does not know what that one computes."""
    requests = [named(0, 0.0, 5, 1, 7), named(1, 0.0, 9, 1, 7, 8)]
    cached, log = rows(requests, num_steps_ahead=num_steps_ahead, max_num_batched_tokens=5)
    assert cached == [0, num_cached]
    assert [prompts for _, _, prompts in log[:2]] == [[(0, 0, 5)], [(1, num_cached, num_cached + 5)]]


def test_what_is_found_is_no_part_of_the_budget():
    requests = [named(0, 0.0, 12, 1, 7, 8, 9), named(1, 2.0, 12, 1, 7, 8, 9), named(2, 2.0, 2, 1)]
    _, log = rows(requests, max_num_batched_tokens=6)
    assert log[-1] == (2.0, [], [(1, 8, 12), (2, 0, 2)])


def test_a_preempted_sequence_finds_its_own_blocks():
    """Two of 4 tokens grow to three blocks each, of four: the last one leaves, and computes its last block alone."""
    requests = [Request(0, 0.0, 4, 6), Request(1, 0.0, 4, 6)]
    cached, log = rows(requests, num_blocks=4)
    assert log[5:7] == [(1.5, [0], []), (1.625, [], [(1, 4, 9)])]  # one of its two full blocks was taken
    assert cached == [0, 0]  # not counted: none of it was there at first


def test_a_blocks_adapter_is_part_of_what_it_is():
    requests = [named(index, 2.0 * index, 9, 1, 7, 8, adapter_id=name) for index, name in enumerate([None, "a", "a"])]
    assert rows(requests, num_adapter_slots=2)[0] == [0, 0, 8]
    assert rows(requests)[0] == [0, 8, 8]  # without slots all have the base model


def test_text_is_shared_as_far_as_it_is_equal_and_answers_are_text():
    """The fake engine answers 0, 1, 2, …; of an answer's last token nothing is computed."""
    texts = [(9, 8, 7), (9, 8, 7, 0, 1, 2, 3, 4, 5), (9, 8, 7, 0, 1, 2, 3, 4, 6)]
    requests = [Request(index, 4.0 * index, len(text), 6, prompt_token_ids=text) for index, text in enumerate(texts)]
    assert rows(requests)[0] == [0, 8, 8]


def test_own_tokens_behind_the_named_ones_are_never_shared():
    requests = [named(0, 0.0, 12, 1, 7), named(1, 2.0, 12, 1, 7), named(1, 4.0, 8, 1)]
    assert rows(requests)[0] == [0, 4, 0]


def test_a_turn_finds_the_conversation_before_it_though_its_blocks_are_filled_by_several_turns():
    """Of 3 + 2 tokens, 2 + 2 and 4 + 1; of the 9 before the third turn all but the last are computed."""
    session = {"session_id": "a", "think_time": 1.0}
    requests = [Request(0, 0.0, 3, 2, session_id="a"), Request(1, 0.0, 7, 2, turn=2, **session)]
    requests += [Request(2, 0.0, 13, 1, turn=3, **session), Request(3, 9.0, 13, 1)]
    cached, log = rows(requests)
    assert cached == [0, 4, 8, 0]
    assert [prompts for _, _, prompts in log] == [[(0, 0, 3)], [], [(1, 4, 7)], [], [(2, 8, 13)], [(3, 0, 13)]]


@pytest.mark.parametrize(("eviction", "evicted"), [("fifo", 7), ("lru", 8), ("lfu", 9)])
def test_each_order_of_eviction(eviction, evicted):
    """7 is computed first, 8 was used the longest ago, and 9 the fewest times."""
    cache = PrefixCache(4, 4, eviction, has_adapters=False)
    for index, name in enumerate([7, 8, 8, 8, 7, 9, 5]):
        serve(cache, named(index, 0.0, 5, 1, name))
    kept = {name for name in (5, 7, 8, 9) if cache.find(Sequence(named(9, 0.0, 5, 1, name)))}
    assert kept == {5, 7, 8, 9} - {evicted}


def serve(cache, *requests):
    """All of them at once: their prompts computed, then given back."""
    sequences = [Sequence(request) for request in requests]
    for sequence in sequences:
        cache.admit(sequence)
    starts = [sequence.num_computed_tokens for sequence in sequences]
    num_tokens = [sequence.num_tokens - start for sequence, start in zip(sequences, starts, strict=True)]
    cache.keep(Batch(sequences, starts, num_tokens, sum(num_tokens), 0))
    for sequence in sequences:
        cache.release(sequence)
        cache.forget(sequence)
    assert not cache.keys.made.keys() & set(sequences)


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_the_deepest_of_equals_goes_first(eviction):
    cache = PrefixCache(4, 4, eviction, has_adapters=False)
    serve(cache, named(0, 0.0, 13, 1, 5, 6, 7))
    serve(cache, named(1, 0.0, 8, 1))
    assert [num for _, num in cache.find(Sequence(named(2, 0.0, 13, 1, 5, 6, 7)))] == [2]


def test_blocks_in_use_are_never_evicted_and_hits_among_the_free_ones_are_taken():
    """Of four blocks two are in use and one is found: three more do not fit."""
    cache = PrefixCache(4, 4, "lru", has_adapters=False)
    serve(cache, named(0, 0.0, 5, 1, 7))
    running = Sequence(named(1, 0.0, 8, 1))
    cache.admit(running)
    following = Sequence(named(2, 0.0, 12, 1, 7))
    assert (cache.missing(following), cache.num_free) == ((8, 3), 2)
    cache.admit(beside := Sequence(named(3, 0.0, 5, 1, 7)))
    assert (cache.missing(following), cache.num_free) == ((8, 2), 0)
    assert not set(running.block_table) & set(beside.block_table)


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_what_is_in_the_middle_of_a_run_can_be_evicted_and_what_is_behind_it_stays(eviction):
    """Sequences take the last free block first: the ranges of two blocks are those at depths 4, 3 and 2, 1 and 0."""
    options = {"num_adapter_slots": 3, "blocks_per_adapter": 2, "prefix_cache": eviction}
    cache = ContinuousScheduler(6, 4, **options).blocks
    request = named(0, 0.0, 21, 1, 1, 2, 3, 4, 5)
    serve(cache, request)
    cache.admit(beside := Sequence(named(1, 0.0, 9, 1, 1, 2)))
    assert not cache.vacate(4, 6)
    cache.release(beside)
    assert cache.vacate(2, 4)
    assert (cache.num_cached, cache.num_empty, cache.num_used) == (3, 3, 0)
    assert sum(num for _, num in cache.find(Sequence(request))) == 2
    serve(cache, named(2, 0.0, 17, 1, 1, 2, 3, 4))
    assert sum(num for _, num in cache.find(Sequence(request))) == 5
    serve(cache, named(3, 0.0, 21, 1, 6))
    assert cache.num_cached + cache.num_empty == cache.num_free == 6


def test_places_that_are_outdated_are_cleaned_up():
    cache = PrefixCache(4, 4, "lru", has_adapters=False)
    for index in range(1000):
        serve(cache, named(index, 0.0, 9, 1, 7, 8))
    assert len(cache.places) < 100


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match=r"scheduler\.prefix_cache='mru' is not one of lru, lfu, fifo; null: no cache"):
        ContinuousScheduler(10, 4, prefix_cache="mru")


@pytest.mark.parametrize(("size", "block_size"), [(48, 32), (512, 16), (16, 64), (5, 7), (7, 1), (1, 16), (512, 512)])
def test_prefix_blocks_of_any_size_map_to_the_caches_own(size, block_size):
    """Two prompts have as many blocks in common as begin with equal tokens, as an engine draws these."""
    ids = tuple(range(1200 // size + 1))
    texts = [(1100, ids[: 1100 // size + 1]), (1300, ids), (1300, (*ids[: 600 // size], 9999, *ids)), (900, (9999,))]
    requests = [named(index, 0.0, *text[:1], 1, *text[1], size=size) for index, text in enumerate(texts)]
    tokens = [tokens_of(Sequence(request)) for request in requests]
    for first, second in permutations(range(len(texts)), 2):
        cache = PrefixCache(2000, block_size, "lru", has_adapters=False)
        serve(cache, requests[first])
        length = min(texts[first][0], texts[second][0])
        num_equal = int((tokens[first][:length] == tokens[second][:length]).cumprod().sum())
        num_found = sum(num for _, num in cache.find(Sequence(requests[second])))
        assert num_found == min(num_equal, texts[second][0] - 1) // block_size
        serve(cache, requests[second])
        assert_names_tell_tokens(requests[first], requests[second], num_equal, block_size)


def assert_names_tell_tokens(one, other, num_equal, block_size):
    """`named_tokens` are equal for equal tokens, and first differ where these do."""
    for start in range(0, num_equal, block_size):
        names = [named_tokens(Sequence(request), start, start + block_size) for request in (one, other)]
        is_within = start + block_size <= min(one.num_prompt_tokens, other.num_prompt_tokens)
        assert (names[0] == names[1]) == (start + block_size <= num_equal) or not is_within


def test_what_one_sequence_computes_is_one_run_and_is_split_where_others_leave_it():
    cache = PrefixCache(1000, 4, "lru", has_adapters=False)
    sequence = Sequence(named(0, 0.0, 2001, 1, *range(500)))
    cache.admit(sequence)
    for start in range(0, 2000, 100):  # in chunks
        cache.keep(Batch([sequence], [start], [100], 100, 0))
    assert [num for _, num in cache.find(sequence)] == [500]
    serve(cache, named(1, 0.0, 1001, 1, *range(200), *range(900, 950)))
    assert [num for _, num in cache.find(sequence)] == [200, 300]
    cache.release(sequence)
    assert (cache.num_cached, cache.num_used) == (550, 0)


class Checked(ContinuousScheduler):
    """Counts all blocks after each decision, and sees that no known or shared block is written."""

    def __init__(self, *args, cache, **options):
        super().__init__(*args, **options)
        self.blocks, self.added = cache, []

    def add(self, sequence):
        self.added.append(sequence)
        super().add(sequence)

    def schedule(self, now):
        batch = super().schedule(now)
        cache = self.blocks
        users = Counter(block for sequence in self.added for block in sequence.block_table)
        runs = dict.fromkeys(cache.runs.values())
        known = {block: run for run in runs for block in run.blocks}
        assert all(cache.runs[key] is run for run in runs for key in run.keys)
        assert all(len(run.keys) == len(run.blocks) for run in runs)
        assert len(known) == len(cache.runs)
        assert all(users[block] == run.num_users for block, run in known.items())
        assert all(users[block] == 1 for block in set(users) - set(known))
        unused = {block for block in known if not users[block]}
        assert len(cache.free) == len(set(cache.free))
        groups = [set(users), set(cache.free), unused]
        assert sum(map(len, groups)) == len(set.union(*groups)) == cache.num_blocks
        assert (self.num_used_blocks, self.num_cached_blocks) == (len(users), len(unused))
        assert {id(run) for run in runs if run.num_users == 0} == {id(run) for run in runs if run.place in cache.places}
        if batch is not None:
            for sequence, start, num in zip(batch.sequences, batch.starts, batch.num_tokens, strict=True):
                written = sequence.block_table[start // cache.block_size : -(-(start + num) // cache.block_size)]
                assert all(users[block] == 1 and block not in known for block in written)
        return batch


def check(requests, cache, num_adapter_slots=0, num_steps_ahead=0, **options):
    engine = Memory(cache.num_blocks, cache.block_size, num_steps_ahead)
    engine.num_adapter_slots = num_adapter_slots
    given = {"watermark": 0.0, "num_adapter_slots": num_adapter_slots}
    scheduler = Checked(cache.num_blocks, cache.block_size, cache=cache, **given | options)
    sequences, steps = replay_trace(requests, scheduler, engine)
    for sequence in sequences:
        request = sequence.request
        (stop,) = request.stop_token_ids or {1 << 40}
        assert sequence.output_token_ids == list(range(min(request.num_output_tokens, stop + 1)))
    assert scheduler.num_unfinished == cache.num_used == len(cache.keys.made) == 0
    assert cache.num_found == OfflineCache(
        cache.num_blocks, cache.block_size, cache.eviction, cache.keys.has_adapters
    ).run(cache.log)
    assert max((step.num_cached_blocks + step.num_used_blocks for step in steps), default=0) <= cache.num_blocks
    return sequences


@settings(max_examples=150, deadline=None)
@given(
    requests=workloads(),
    eviction=st.sampled_from(EVICTIONS),
    block_size=st.sampled_from([1, 4, 7, 16]),
    spare=st.integers(0, 12),
    num_adapter_slots=st.integers(0, 2),
    num_steps_ahead=st.integers(0, 1),
    budget=st.sampled_from([6, 40, 2048]),
    steps=st.sampled_from(["prompts_first", "mixed", "alternate"]),
    whole_prompts=st.booleans(),
)
def test_hits_equal_those_of_a_cache_after_the_fact(
    requests, eviction, block_size, spare, num_adapter_slots, num_steps_ahead, budget, steps, whole_prompts
):
    largest = max(-(-(one.num_prompt_tokens + one.num_output_tokens) // block_size) for one in requests)
    cache = LoggedCache(largest + spare, block_size, eviction, has_adapters=num_adapter_slots > 0)
    options = {"max_num_batched_tokens": budget, "steps": steps, "whole_prompts": whole_prompts, "max_num_seqs": 4}
    check(requests, cache, num_adapter_slots, num_steps_ahead, **options)


@pytest.mark.parametrize(
    ("block_size", "num_blocks", "eviction"), [(16, 120, "lru"), (100, 30, "lfu"), (512, 6, "fifo")]
)
def test_hits_on_blocks_of_512_tokens(block_size, num_blocks, eviction):
    requests = clip(read_mooncake(ROOT / "traces" / "sample_mooncake.jsonl"), 1800, 20).requests[:25]
    cache = LoggedCache(num_blocks, block_size, eviction, has_adapters=False)
    sequences = check(requests, cache, steps="mixed", whole_prompts=False, max_num_batched_tokens=700)
    assert sum(sequence.num_cached_tokens for sequence in sequences) > 3000


def replayed(trace, num_blocks, block_size, eviction):
    """Found tokens of each admission in a replay of the trace, and after the fact."""
    cache = LoggedCache(num_blocks, block_size, eviction, has_adapters=False)
    engine = FakeEngine(lambda batch: 0.01 + 5e-6 * batch.num_prefill_tokens, num_blocks, block_size)
    options = {"steps": "mixed", "max_num_batched_tokens": 8192, "whole_prompts": False, "max_num_seqs": 128}
    scheduler = ContinuousScheduler(num_blocks, block_size, **options)
    scheduler.blocks = cache
    replay_trace(trace.requests, scheduler, engine)
    return cache.num_found, OfflineCache(num_blocks, block_size, eviction, has_adapters=False).run(cache.log)


@pytest.mark.nightly
@pytest.mark.parametrize("eviction", EVICTIONS)
@pytest.mark.parametrize(
    ("name", "num_requests", "num_blocks", "block_size"),
    [("conversation", None, 2000, 512), ("synthetic", None, 2000, 512), ("conversation", 800, 20_000, 16)],
)
def test_hits_on_mooncakes_traces(name, num_requests, num_blocks, block_size, eviction):
    path = ROOT.parent / "shared" / "traces" / f"mooncake_fast25_{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not at hand")
    trace = read_mooncake(path)
    trace = replace(trace, requests=trace.requests[:num_requests])
    num_found, expected = replayed(trace, num_blocks, block_size, eviction)
    assert num_found == expected
    assert sum(num_found) > 0
