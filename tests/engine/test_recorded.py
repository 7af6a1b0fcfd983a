"""RecordedEngine repeats a run as long as it goes on as it went, and then takes what was fitted on it."""

import pytest

from framework.build import replay_trace
from framework.core import Request
from framework.engine.recorded import RecordedEngine
from framework.scheduler.continuous import ContinuousScheduler
from tests.fake_engine import FakeEngine, requests_at
from tests.records import make_record, record_run, some_record

REQUESTS = requests_at((0.0, 8, 6), (0.01, 20, 3), (0.03, 5, 9), (0.2, 16, 2))


def serve(engine, requests, **options):
    sequences, steps = replay_trace(
        requests, ContinuousScheduler(engine.num_blocks, engine.block_size, **options), engine
    )
    return [sequence.token_times for sequence in sequences], steps


def recorded(folder, requests=REQUESTS, num_steps_ahead=0, **options):
    """An engine that follows a run of theirs, and the run's token times and steps."""
    durations = iter(0.01 + 0.0001 * index for index in range(1000))
    engine = FakeEngine(lambda batch: next(durations), num_steps_ahead=num_steps_ahead)
    run, sequences, steps = record_run(folder, requests, engine)
    engine = RecordedEngine(make_record([run]), points="runs", **options)
    engine.follow("a", "a", 0)
    return engine, [sequence.token_times for sequence in sequences], steps


@pytest.mark.parametrize("num_steps_ahead", [0, 1])
def test_the_same_replay_is_repeated_again_and_again(tmp_path, num_steps_ahead):
    engine, times, steps = recorded(tmp_path, num_steps_ahead=num_steps_ahead)
    for _ in range(2):
        assert serve(engine, REQUESTS) == (times, steps)
        assert (engine.num_replayed, engine.num_seen, engine.outside.num_outside) == (len(steps), 0, 0)


def test_from_the_first_other_step_on_nothing_is_repeated(tmp_path):
    """Two seats: the third request waits, so the step in which it came is another one."""
    engine, _, steps = recorded(tmp_path, noise=False)
    _, found = serve(engine, REQUESTS, max_num_seqs=2)
    num_equal = engine.num_replayed
    assert 0 < num_equal < len(steps)
    assert [step.elapsed for step in found[:num_equal]] == [step.elapsed for step in steps[:num_equal]]
    assert engine.outside.num_steps == len(found) - num_equal
    assert 0 < engine.num_seen < len(found) - num_equal


def test_the_noise_is_drawn_by_seed(tmp_path):
    other = requests_at((0.0, 9, 20), (0.0, 11, 20))
    first, again, reseeded, typical = (
        serve(recorded(tmp_path, **options)[0], other)[0] for options in ({}, {}, {"seed": 1}, {"noise": False})
    )
    assert first == again
    assert first != reseeded
    assert first != typical


def test_larger_steps_are_outside(tmp_path):
    engine = recorded(tmp_path)[0]
    serve(engine, requests_at((0.0, 400, 2)))
    assert engine.outside.num_outside == engine.outside.num_steps == 2
    assert engine.outside.furthest["num_context_tokens of decode steps"] > 10


def test_an_output_stops_where_it_stopped_whoever_is_served_beside_it(tmp_path):
    requests = [Request(index, 0.0, 6, 9, stop_token_ids=frozenset({2 + index})) for index in range(3)]
    engine = recorded(tmp_path, requests)[0]
    assert [len(times) for times in serve(engine, requests, max_num_seqs=1)[0]] == [3, 4, 5]
    assert engine.has_outputs
    others = [Request(index, 0.0, 7, 9, stop_token_ids=frozenset({0, 1})) for index in range(3)]
    assert [len(times) for times in serve(engine, others)[0]] == [9, 9, 9]
    assert not engine.has_outputs


def test_what_the_recorded_engine_refused_is_refused(tmp_path):
    engine = RecordedEngine(some_record(tmp_path, refused={"x": "adapter 'x' is broken"}), points="runs")
    assert engine.refused_adapters([Request(0, 0.0, 1, 1, adapter_id="x")]) == {"x": "adapter 'x' is broken"}
    assert engine.refused_adapters([Request(0, 0.0, 1, 1, adapter_id="y")]) == {}


def test_the_cache_is_the_recorded_one_unless_it_is_given(tmp_path):
    record = some_record(tmp_path, num_swap_blocks=7)
    as_recorded, larger, own = (
        RecordedEngine(record, points="runs", **options)
        for options in ({}, {"block_size": 16}, {"num_blocks": 7, "num_swap_blocks": 0})
    )
    assert (as_recorded.num_blocks, as_recorded.block_size, as_recorded.num_swap_blocks) == (1000, 4, 7)
    assert (larger.num_blocks, larger.block_size) == (250, 16)
    assert (own.num_blocks, own.num_cache_bytes, own.num_swap_blocks) == (7, 7000, 0)
    with pytest.raises(ValueError, match=r"engine.num_blocks=0"):
        RecordedEngine(record, points="runs", num_blocks=0)
    unified = some_record(tmp_path, blocks_per_adapter=3, num_recorded_slots=5)
    assert RecordedEngine(unified, points="runs").num_adapter_slots == 5
    with pytest.raises(ValueError, match=r"engine.block_size=16: adapters lie in KV blocks of 4 tokens in runs"):
        RecordedEngine(unified, points="runs", block_size=16)
