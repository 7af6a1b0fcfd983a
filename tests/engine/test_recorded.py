"""RecordedEngine repeats a run as long as it goes on as it went, and then takes what was fitted on it."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

from framework.build import replay_trace
from framework.core import Request
from framework.engine.recorded import RecordedEngine
from framework.scheduler.continuous import ContinuousScheduler
from tests.cost_models import MODEL, target
from tests.fake_engine import FakeEngine, requests_at
from tests.quantization.small_models import LLAMA
from tests.records import make_record, record_run, some_record

MIXED = {"steps": "mixed", "whole_prompts": False}
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
    assert engine.outside.furthest["max_context_tokens of decode steps"] > 10


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


def step_time(rng, batch):
    """A step of an engine whose steps are linear in rows, pairs and context, with 3% of noise."""
    num_rows = batch.num_prefill_tokens + batch.num_decode_tokens
    seconds = 4e-3 + 4e-5 * num_rows + 2e-8 * batch.num_prefill_pairs + 2e-7 * batch.num_context_tokens
    return seconds * float(np.exp(0.03 * rng.standard_normal()))


def test_another_policy_is_ranked_as_executed_and_its_p99_is_near(tmp_path):
    """Recorded with whole prompts alone, which show no mixed step."""
    rng = np.random.default_rng(0)
    lengths = list(zip(rng.integers(8, 400, 300).tolist(), rng.integers(2, 60, 300).tolist(), strict=True))
    gaps = rng.exponential(1, 300)
    long = target(model=partial(MODEL.func, **MODEL.keywords | {"config": LLAMA | {"max_position_embeddings": 4096}}))
    policies = {"a": {"max_num_batched_tokens": 512}, "b": {"max_num_batched_tokens": 128, **MIXED}}
    schedulers = {name: partial(ContinuousScheduler, 1000, 16, **options) for name, options in policies.items()}
    for rate in (20.0, 35.0):
        times = np.cumsum(gaps / rate).tolist()
        requests = requests_at(*((time, *pair) for time, pair in zip(times, lengths, strict=True)))
        runs = {}
        for seed, (name, scheduler) in enumerate(schedulers.items()):
            engine = FakeEngine(partial(step_time, np.random.default_rng(seed)), block_size=16)
            runs[name] = record_run(tmp_path / f"{name}{rate}", requests, engine, scheduler())[0]
        engine = RecordedEngine(make_record([runs["a"]], target=long, block_size=16), points="runs", seed=1)
        predicted = record_run(tmp_path / "predicted", requests, engine, schedulers["b"]())[0]
        found, a, b = (p99_ttft(run) for run in (predicted, runs["a"], runs["b"]))
        assert found == pytest.approx(b, rel=0.1)
        assert abs(b / a - 1) > 0.05
        assert (found < a) == (b < a)


def p99_ttft(run):
    return pd.read_parquet(run.folder / "requests.parquet")["ttft"].quantile(0.99)
