"""Budgets that are refused, and that of the model's context."""

from functools import partial

import pytest

from framework.build import make_scheduler
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.token_budget import token_budget
from tests.fake_engine import FakeEngine
from tests.scheduler.shipped import shipped


def test_without_a_budget_it_is_the_context():
    assert token_budget(None, 77, "mixed", 8) == 77
    assert token_budget(5, 77, "prompts_first", 8) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_batched_tokens": 0}, r"scheduler\.max_num_batched_tokens must be at least 1, not 0"),
        ({"max_num_batched_tokens": -1}, r"scheduler\.max_num_batched_tokens must be at least 1, not -1"),
        (
            {"max_num_batched_tokens": 7},
            r"scheduler\.max_num_batched_tokens=7 is less than one decode token for each of scheduler\.max_num_seqs=8",
        ),
    ],
)
@pytest.mark.parametrize("name", ["mixed", "sarathi", "chunk_only", "hybrid_only"])
def test_a_budget_that_does_not_suffice_for_the_seats_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        shipped(name, **options)(num_blocks=10, block_size=4)


def test_a_context_that_does_not_suffice_for_the_seats_is_refused():
    with pytest.raises(ValueError, match=r"max_num_batched_tokens=12 \(null: the model's context\) is less than one"):
        token_budget(None, 12, "mixed", 13)


def test_prompts_first_need_no_token_for_every_seat():
    make_scheduler(partial(ContinuousScheduler, max_num_seqs=8, max_num_batched_tokens=7), FakeEngine())
