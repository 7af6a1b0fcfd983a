"""What a run on disk says of its steps and requests, and the cost model that is fitted on runs."""

from dataclasses import replace

import numpy as np
import pytest

from framework.core import Request, StepResult
from framework.cost.features import Features
from framework.cost.record import is_same, result_of
from tests.fake_engine import FakeEngine, requests_at
from tests.records import make_record, record_run, some_record

REQUESTS = requests_at((0.0, 8, 6), (0.01, 20, 3))
SERVED = {
    "refused": None,
    "adapter_id": None,
    "session_id": None,
    "turn": 1,
    "num_prompt_tokens": 8,
    "token_ids": [4, 5, 6],
}


def test_a_runs_steps_are_what_they_took(tmp_path):
    engine = FakeEngine(lambda batch: 0.02 if batch.num_prefill_tokens else 0.01)
    run, _, steps = record_run(tmp_path, REQUESTS, engine)
    shapes, results = zip(*run.steps_of(0), strict=True)
    assert [(shape[0], shape[1], shape[3]) for shape in shapes] == [
        (step.num_prefill_tokens, step.num_decode_tokens, step.num_context_tokens) for step in steps
    ]
    assert [result.elapsed for result in results] == [step.elapsed for step in steps]
    assert list(run.steps_of(1)) == []
    assert run.log()["elapsed"].tolist() == [step.elapsed for step in steps]


def test_a_step_has_the_hosts_work_and_the_adapters_that_it_waited_for():
    row = {"elapsed": 1.0, "prepare": 0.1, "device": 0.5, "adapter_waits": [[2.0, 0.25]], "swap_wait": 0.0}
    row |= {"schedule": 0.01, "update": 0.02, "launch": 0.03}
    assert result_of(row) == StepResult([], 1.0, 0.1, 0.5, {2: 0.25}, 0.0, 0.01, 0.02, 0.03)
    assert result_of(row | {"adapter_waits": None}).adapter_waits == {}


@pytest.mark.parametrize(
    ("changes", "is_known"),
    [
        ({}, True),
        ({"num_output_tokens": 5}, False),
        ({"num_output_tokens": 5, "stop_token_ids": frozenset({6})}, True),
        ({"num_output_tokens": 5, "stop_token_ids": frozenset({5})}, False),
        ({"num_prompt_tokens": 9}, False),
        ({"num_prompt_tokens": 9, "think_time": 1.0}, True),
        ({"adapter_id": "x"}, False),
        ({"session_id": "s"}, False),
    ],
)
def test_tokens_are_known_of_requests_that_are_the_recorded_ones(changes, is_known):
    request = replace(Request(0, 0.0, 8, 3), **changes)
    assert is_same(request, SERVED) is is_known
    assert not is_same(request, None)
    assert not is_same(request, SERVED | {"refused": "too long"})


def test_the_outputs_are_those_of_a_run_that_has_all_requests(tmp_path):
    first, second = (record_run(tmp_path / str(num), REQUESTS[:num], FakeEngine(), key=str(num))[0] for num in (1, 2))
    record = make_record([first, second])
    assert first.outputs(REQUESTS) is None
    assert record.outputs(REQUESTS) == {0: [0, 1, 2, 3, 4, 5], 1: [0, 1, 2]}
    assert record.outputs([replace(REQUESTS[0], num_prompt_tokens=9)]) is None


def test_a_replay_has_one_run(tmp_path):
    run = record_run(tmp_path, REQUESTS, FakeEngine())[0]
    wall = replace(run, arm="wall")
    record = make_record([run, wall])
    assert record.run_of("a", "wall") is wall
    assert record.run_of("b", "wall") is None
    with pytest.raises(ValueError, match=r"engine.points=runs has such a replay of a, wall: choose one"):
        record.run_of("a", "other")


def test_the_cost_model_has_the_recorded_seconds(tmp_path):
    record = some_record(tmp_path)
    for kind, seconds in {"prompt": 0.02, "decode": 0.01}.items():
        cost = record.cost.kinds[kind]
        assert cost.seconds_of_rows(4) == pytest.approx(seconds, rel=0.01)
        assert cost.ratios[-1] == pytest.approx(1.0, rel=0.01)
    assert ("decode", 2, 2, 19, 11, 0, 0.0, 0, 0, 0, 0, 0.0) in record.seen


def test_whole_prompts_tell_nothing_of_earlier_tokens_and_rows_take_what_is_theirs(tmp_path):
    """With 20% of noise, and pairs that follow from the rows: a mixed step still costs its rows and its context."""
    rng = np.random.default_rng(0)

    def step_time(batch):
        rows = sum(batch.num_tokens)
        noise = float(np.exp(0.2 * rng.standard_normal()))
        return (2e-3 + 1e-4 * rows + 1e-6 * batch.num_context_tokens) * noise

    lengths = zip(rng.integers(4, 300, 80).tolist(), rng.integers(2, 40, 80).tolist(), strict=True)
    requests = requests_at(*((0.3 * index, *pair) for index, pair in enumerate(lengths)))
    record = make_record([record_run(tmp_path, requests, FakeEngine(step_time, num_blocks=1000))[0]])
    prompt, decode = (record.cost.kinds[kind] for kind in ("prompt", "decode"))
    assert prompt.context == decode.context
    mixed = Features(
        108, 9, 2108, 260, 5050, 50.5, 0, 0, 0, 0
    )  # a prompt of 100 tokens, and 8 decodes of some 250 tokens each
    seconds = prompt.seconds(record.cost.computed("prompt", mixed)).device
    assert seconds == pytest.approx(2e-3 + 108e-4 + 2108e-6, rel=0.15)
