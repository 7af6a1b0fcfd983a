"""What a schema costs, by hand, and which outputs are its documents."""

from dataclasses import replace
from functools import partial

import pandas as pd
import pytest

from experiments.generate.schema import (
    NUM_REPEATS,
    cost_table,
    describe_cost,
    describe_documents,
    schema_cost,
    without_schema,
)
from framework.build import make_scheduler, replay_trace
from framework.core import Request, Sequence
from framework.scheduler.continuous import ContinuousScheduler
from tests.fake_engine import FakeEngine, requests_at


def test_the_cost_is_a_median_of_differences_in_one_repeat():
    index = pd.MultiIndex.from_product([("with", "without"), range(3)])
    times = [3.0, 5.0, 9.0, 2.0, 4.5, 5.0]
    table = cost_table(pd.DataFrame({"step (ms)": times, "per token (ms)": times}, index=index))
    assert table.filter(like="per token").to_numpy().tolist() == [[5.0, 3.0, 9.0], [4.5, 2.0, 5.0], [1.0, 0.5, 4.0]]
    assert describe_cost(table).startswith("the schema costs 1 ms per token [0.5, 4] (+22%); the median over")
    less = cost_table(pd.DataFrame({"per token (ms)": [3.0, 5.0, 4.0, 2.0, 4.5, 5.0]}, index=index))
    assert "(+11%), which these repeats cannot tell from nothing;" in describe_cost(less)


def test_the_interval_of_the_cost_is_from_the_third_least_to_the_third_most():
    index = pd.MultiIndex.from_product([("with", "without"), range(NUM_REPEATS)])
    times = [float(repeat**2) for repeat in range(NUM_REPEATS)] + [0.0] * NUM_REPEATS
    table = cost_table(pd.DataFrame({"per token (ms)": times}, index=index))
    assert table.iloc[2].tolist() == ["difference", 30.5, 4.0, 81.0]


def test_an_output_that_ended_as_no_json_is_told():
    class Letters:
        def decode(self, token_ids):
            return "".join(map(chr, token_ids))

    sequences = [Sequence(Request(0, 0.0, 1, 9, stop_token_ids=frozenset({0}))) for _ in range(3)]
    for sequence, text in zip(sequences, ("[1]\0", "[1\0", "[1"), strict=True):
        sequence.output_token_ids = list(map(ord, text))
    assert describe_documents(sequences, Letters()) == (
        "1 of 3 outputs are whole documents of the schema; 1 ended as no JSON; "
        "the others are cut off: raise num_output_tokens, or limit strings and lists (maxLength, maxItems)"
    )


def test_without_a_schema_a_request_asks_for_as_many_tokens_as_it_got():
    sequence = Sequence(Request(3, 0.0, 1, 9, stop_token_ids=frozenset({0}), json_schema="{}"))
    sequence.output_token_ids = [5, 6, 0]
    request = without_schema(sequence)
    assert (request.request_id, request.num_prompt_tokens, request.num_output_tokens) == (3, 1, 3)
    assert (request.json_schema, request.stop_token_ids) == (None, frozenset())


def test_the_cost_is_of_the_decode_steps_of_the_same_batches():
    """A step is 10 ms, and 5 ms more for each sequence with a schema: per token half, for two sequences."""

    def step_time(batch):
        return 0.01 + 0.005 * sum(sequence.request.json_schema is not None for sequence in batch.sequences)

    engine = FakeEngine(step_time)
    requests = [replace(request, json_schema="{}") for request in requests_at((0.0, 4, 3), (0.0, 4, 3))]
    scheduler = partial(ContinuousScheduler)
    sequences, _ = replay_trace(requests, make_scheduler(scheduler, engine), engine)
    medians = schema_cost(sequences, scheduler, engine)
    assert medians.index.tolist() == [(name, repeat) for name in ("with", "without") for repeat in range(NUM_REPEATS)]
    assert medians.loc["with"].to_numpy().ravel().tolist() == pytest.approx([20.0, 10.0] * NUM_REPEATS)
    assert medians.loc["without"].to_numpy().ravel().tolist() == pytest.approx([10.0, 5.0] * NUM_REPEATS)
