"""What the Engine protocol promises, for every engine in framework/engine and the fake one."""

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import framework.engine
from framework.build import replay_trace
from framework.core import Request
from framework.engine.modelled import ModelledEngine
from framework.engine.recorded import RecordedEngine
from framework.engine.torch_engine import TorchEngine
from framework.engine.torch_engine.replica import Replica, make_replicas
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from tests.contracts.implementations import implementations
from tests.cost_models import target, write_model
from tests.fake_engine import FakeEngine
from tests.quantization.small_models import make_model
from tests.records import some_record

BLOCK_SIZE, ROOMY, TIGHT = 4, 64, 8
MIXED = {"steps": "mixed", "max_num_batched_tokens": 9, "max_num_seqs": 4}
ENGINES = [*implementations(framework.engine, "refused_adapters", "begin", "add", "launch", "collect"), FakeEngine]
REQUESTS = [
    Request(index, 0.001 * index, *lengths) for index, lengths in enumerate([(5, 18), (23, 6), (1, 25), (12, 9)])
]


class Recorder(ContinuousScheduler):
    """Keeps each batch's sequences, slots and tokens: (sequence, end of its slots, tokens known then, token)."""

    def schedule(self, now):
        batch = super().schedule(now)
        if batch is not None:
            self.ends = [start + num for start, num in zip(batch.starts, batch.num_tokens, strict=True)]
            self.known = [sequence.num_tokens for sequence in batch.sequences]
        return batch

    def postprocess(self, batch, token_ids, now):
        for end, known, token_id in zip(self.ends, self.known, token_ids, strict=True):
            assert (token_id is not None) == (end >= known)
        return super().postprocess(batch, token_ids, now)


def make(engine_type: type, num_blocks: int = ROOMY):
    """An engine as a study makes it, of a small model where it takes one; so many blocks of 4 tokens."""
    model = {} if engine_type is FakeEngine else {"model": make_model("llama")}
    if engine_type is ModelledEngine:
        with TemporaryDirectory() as folder:
            path = str(write_model(Path(folder)))
            engine = engine_type(target(), path=path, num_blocks=num_blocks, block_size=BLOCK_SIZE)
    elif engine_type is RecordedEngine:
        with TemporaryDirectory() as folder:
            record = some_record(Path(folder))
            assert record.cost.kinds  # fitted while the run is there
            assert record.seen
        record.runs.clear()
        engine = engine_type(record, points="runs", num_blocks=num_blocks, block_size=BLOCK_SIZE)
    elif engine_type is Replica:
        whole = TorchEngine(**model, num_blocks=3 * num_blocks, block_size=BLOCK_SIZE)
        engine = make_replicas(whole, 3)[1]
    else:
        engine = engine_type(**model, num_blocks=num_blocks, block_size=BLOCK_SIZE)
    assert (engine.num_blocks, engine.block_size) == (num_blocks, BLOCK_SIZE)
    return engine


def outputs(engine, make_scheduler, requests=REQUESTS, **options):
    scheduler = make_scheduler(engine.num_blocks, engine.block_size, **options)
    sequences, steps = replay_trace(requests, scheduler, engine)
    assert all(step.elapsed > 0 for step in steps)
    return [sequence.output_token_ids for sequence in sequences], sum(one.num_preemptions for one in sequences)


@pytest.fixture(scope="module", params=ENGINES)
def engine_type(request):
    return request.param


@pytest.fixture(scope="module")
def alone(engine_type):
    """What each request's output is when it is served alone."""
    engine = make(engine_type)
    return [outputs(engine, ContinuousScheduler, [request])[0][0] for request in REQUESTS]


def test_an_output_has_the_length_that_was_asked_for(alone, engine_type):
    assert [len(output) for output in alone] == [request.num_output_tokens for request in REQUESTS]
    if make(engine_type).timer is not None:  # it has a model, and the tests below can tell its outputs apart
        assert len({token for output in alone for token in output}) > 10


@pytest.mark.parametrize(
    ("make_scheduler", "options"),
    [
        (ContinuousScheduler, {}),
        (ContinuousScheduler, {"max_num_seqs": 2}),
        (Recorder, {"max_num_batched_tokens": 5}),
        (StaticScheduler, {"max_num_seqs": 3, "max_wait": 0.0}),
        (Recorder, MIXED),
        (Recorder, MIXED | {"whole_prompts": False}),
        (Recorder, {"steps": "alternate", "max_num_batched_tokens": 5, "max_num_seqs": 4, "whole_prompts": False}),
    ],
    ids=["together", "two seats", "split prompts", "static", "mixed", "mixed chunks", "alternating chunks"],
)
def test_tokens_do_not_depend_on_the_batching(engine_type, alone, make_scheduler, options):
    assert outputs(make(engine_type), make_scheduler, **options) == (alone, 0)


@pytest.mark.parametrize("options", [{}, MIXED, MIXED | {"whole_prompts": False}], ids=["", "mixed", "mixed chunks"])
def test_tokens_do_not_depend_on_preemptions(engine_type, alone, options):
    tokens, num_preemptions = outputs(make(engine_type, TIGHT), ContinuousScheduler, watermark=0.0, **options)
    assert tokens == alone
    assert num_preemptions > 0


def test_every_replay_begins_anew(engine_type, alone):
    engine = make(engine_type)
    for _ in range(2):
        assert outputs(engine, ContinuousScheduler)[0] == alone


def test_nothing_is_promised_of_adapters_where_there_are_no_slots(engine_type):
    engine = make(engine_type)
    assert (engine.num_adapter_slots, engine.num_adapter_bytes) == (0, 0)
    assert engine.refused_adapters(REQUESTS) == {}


def test_limits_and_clock(engine_type):
    engine = make(engine_type)
    assert engine.max_model_len >= max(one.num_prompt_tokens + one.num_output_tokens for one in REQUESTS)
    assert engine.num_steps_ahead in (0, 1)
    assert engine.num_cache_bytes >= 0
    if engine.timer is not None:  # else it measures nothing
        times = [engine.timer() for _ in range(3)]
        assert all(later >= earlier for earlier, later in pairwise(times))
