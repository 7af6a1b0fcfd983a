"""A step on a CPU is over when it is launched; its times, who samples, and what it leaves alone."""

from framework.core import Batch
from tests.engine.torch_engine.hand_schedules import make_requests, seat
from tests.engine.torch_engine.test_engine import make_engine


def test_only_sequences_at_their_last_token_sample():
    engine = make_engine()
    requests = make_requests([6, 4], [2, 2])
    engine.begin(requests, 8)
    tokens = engine.step(Batch(seat(engine, requests), [0, 0], [5, 4], 9, 0)).token_ids
    assert [token is None for token in tokens] == [True, False]


def test_step_leaves_sequences_alone_and_reports_times():
    engine = make_engine()
    ticks = iter([10.0, 10.5, 12.0, 12.25])
    requests = make_requests([6], [2])
    engine.begin(requests, 8)
    (sequence,) = seat(engine, requests)
    table = list(sequence.block_table)
    engine.timer = lambda: next(ticks)
    result = engine.step(Batch([sequence], [0], [4], 4, 0))
    assert (result.token_ids, result.elapsed, result.prepare, result.device) == ([None], 2.25, 0.5, 1.5)
    assert (sequence.num_computed_tokens, sequence.output_token_ids, sequence.block_table) == (0, [], table)
