"""Event logs of each reservation by hand, blocks of 4 tokens; a step with a prompt takes 1 s, others 0.125 s."""

from functools import partial

import pytest

from framework.build import make_scheduler
from framework.core import Request
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.reservation import Promises
from tests.fake_engine import FakeEngine, requests_at
from tests.scheduler.event_logs import run, run_rows

REQUESTS = requests_at((0.0, 4, 6), (0.0, 4, 6), (0.0, 4, 6))


@pytest.mark.parametrize(
    ("reservation", "num_slots"),
    [("paged", 0), ("oracle", 105), ("pow2", 108), ("max", 2048), ("oracle_buddy", 128), ("pow2_buddy", 128)],
)
def test_what_is_promised(reservation, num_slots):
    assert Promises(reservation, 2048).num_slots(Request(0, 0.0, 100, 5)) == num_slots


@pytest.mark.parametrize(("num_output_tokens", "rounded"), [(1, 1), (2, 2), (3, 4), (25, 32), (32, 32), (33, 64)])
def test_an_output_is_rounded_up_to_a_power_of_two_within_the_context(num_output_tokens, rounded):
    request = Request(0, 0.0, 100, num_output_tokens)
    assert Promises("pow2", None).num_slots(request) == 100 + rounded
    assert Promises("pow2", 140).num_slots(request) == min(100 + rounded, 140)


@pytest.mark.parametrize(("num_prompt_tokens", "oracle", "pow2"), [(31, 64, 128), (32, 64, 128), (65, 128, 256)])
def test_a_chunk_of_contiguous_memory_is_a_power_of_two(num_prompt_tokens, oracle, pow2):
    """Of 32 output tokens, and of 33, which `pow2` rounds up to 64 first."""
    assert Promises("oracle_buddy", 2048).num_slots(Request(0, 0.0, num_prompt_tokens, 32)) == oracle
    assert Promises("pow2_buddy", 2048).num_slots(Request(0, 0.0, num_prompt_tokens, 33)) == pow2


@pytest.mark.parametrize(
    ("reservation", "together"), [("paged", [3, 1]), ("oracle", [2, 1]), ("pow2", [2, 1]), ("max", [1, 1, 1])]
)
def test_how_many_are_admitted_together(reservation, together):
    """Of 7 blocks a prompt takes one, prompt and output 3, the context 6."""
    options = {"reservation": reservation, "watermark": 0.0, "max_model_len": 24}
    sequences, steps, log = run(REQUESTS, ContinuousScheduler, num_blocks=7, **options)
    assert [len(ids) for _, phase, ids in log if phase == "prefill"] == together
    assert any(sequence.num_preemptions for sequence in sequences) == (reservation == "paged")
    sizes = [step.num_token_slots + step.num_reserved_slots + step.num_lost_slots for step in steps]
    assert sizes == [4 * step.num_used_blocks for step in steps]
    assert all(size + step.num_free_slots == 28 for size, step in zip(sizes, steps, strict=True))


@pytest.mark.parametrize(
    ("reservation", "first", "last"),
    [
        ("paged", (4, 0, 0, 20), (8, 0, 0, 16)),
        ("oracle", (4, 4, 4, 12), (8, 0, 4, 12)),  # nothing is computed of the fifth token, the last one
        ("pow2", (4, 4, 4, 12), (8, 0, 4, 12)),
        ("max", (4, 4, 8, 8), (8, 0, 8, 8)),
    ],
)
def test_what_the_slots_hold(reservation, first, last):
    """One sequence that fills 8 slots; of 6 blocks its prompt takes one, `pow2` and `oracle` 3, the context 4."""
    options = {"reservation": reservation, "max_model_len": 16}
    _, steps, _ = run(requests_at((0.0, 4, 5)), ContinuousScheduler, num_blocks=6, **options)
    slots = [(one.num_token_slots, one.num_reserved_slots, one.num_lost_slots, one.num_free_slots) for one in steps]
    assert (slots[0], slots[-1]) == (first, last)


def test_the_end_of_a_last_block_is_lost():
    _, steps, _ = run(requests_at((0.0, 5, 2)), ContinuousScheduler, num_blocks=6)
    assert [(step.num_token_slots, step.num_reserved_slots, step.num_lost_slots) for step in steps] == [
        (5, 1, 2),
        (6, 0, 2),
    ]


@pytest.mark.parametrize("reservation", ["oracle", "pow2", "max"])
def test_a_reservation_leaves_the_watermark_and_goes_with_a_prefix_cache(reservation):
    """Each is promised 4 of 8 blocks, of which one is kept free: both fit only if they share one."""
    lengths = [(0.0, 5, 8), (1.05, 5, 8)]
    requests = [Request(index, *row, prefix_ids=(7,), prefix_block_size=4) for index, row in enumerate(lengths)]
    options = {"reservation": reservation, "max_model_len": 16, "watermark": 0.13}
    for prefix_cache, num_together in (("lru", 2), (None, 1)):
        make = partial(ContinuousScheduler, prefix_cache=prefix_cache, **options)
        _, log = run_rows(requests, make, num_blocks=8)
        assert max(len(decoding) for _, decoding, _ in log) == num_together


def test_a_reservation_that_can_never_fit_is_refused():
    scheduler = ContinuousScheduler(5, 4, reservation="max", max_model_len=21)
    message = r"reservation=max promises it more \(21 tokens, the model's context\) than the KV cache, which has 5 KV"
    with pytest.raises(ValueError, match=message):
        scheduler.check(Request(0, 0.0, 1, 1))
    scheduler = ContinuousScheduler(5, 4, reservation="pow2")
    scheduler.check(Request(0, 0.0, 4, 16))
    with pytest.raises(ValueError, match=r"scheduler\.reservation=pow2 promises it more than the KV cache"):
        scheduler.check(Request(0, 0.0, 3, 17))


def test_an_unknown_reservation_is_refused_and_so_is_a_context_that_nobody_knows():
    with pytest.raises(ValueError, match=r"scheduler\.reservation='all' is not one of paged, max, pow2, oracle"):
        ContinuousScheduler(10, 4, reservation="all")
    with pytest.raises(ValueError, match=r"scheduler\.reservation=max needs max_model_len"):
        ContinuousScheduler(10, 4, reservation="max").check(REQUESTS[0])
    engine = FakeEngine(num_blocks=1 << 18)
    make_scheduler(partial(ContinuousScheduler, reservation="max"), engine).check(REQUESTS[0])
