"""Models are loaded once, and warmed before they are timed."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from weakref import WeakSet

import pytest
import torch

from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from framework.study import engine_cache
from framework.study.arms import resolve_arms
from framework.study.engine_cache import EngineCache
from framework.trace.arrivals import poisson
from framework.trace.synthetic import synthetic
from tests.fake_engine import FakeEngine
from tests.study.fake_study import DEFAULTS, LENGTHS, LOADED, load_fake_model


def test_arms_that_share_a_model_load_it_once_wherever_they_stand(study):
    other = partial(load_fake_model, name="b")
    arms = {"first": {}, "second": {"model": other}, "third": {"scheduler": {"max_num_seqs": 2}}}
    study(arms, [1.0])
    assert LOADED == ["a", "b"]


class Memory:
    """Of a GPU, where a block of KV cache takes 1 GiB; freed with the engine whose it is."""

    def __init__(self, monkeypatch, num_bytes):
        self.num_bytes = num_bytes
        self.engines = WeakSet()
        monkeypatch.setattr(engine_cache, "free_bytes", lambda device: self.free)

    @property
    def free(self):
        return self.num_bytes - sum(GB * engine.num_blocks for engine in self.engines)

    def build(
        self, *, model, max_num_blocks=None, num_blocks=None, kv_cache_bytes=None, memory_bytes=None, block_size=4
    ):
        """Nine tenths of what is free, or what is asked for; ValueError if that is too much."""
        most = int(0.9 * self.free / GB)
        taken = num_blocks or (most if max_num_blocks is None else min(most, max_num_blocks))
        if taken > self.free / GB:
            raise ValueError(f"{taken} GB do not fit")
        engine = FakeEngine(num_blocks=taken)
        self.engines.add(engine)
        return engine


GB = 2**30


def load_model_with_a_context(*, name, max_model_len, device):
    LOADED.append(name)
    return SimpleNamespace(config=SimpleNamespace(max_model_len=max_model_len))


def engines_of(memory, arms, max_model_len=2):
    """For each turn of the arms, the number of blocks of the engine, and how many engines there are."""
    LOADED.clear()
    model = partial(load_model_with_a_context, name="a", max_model_len=max_model_len)
    parts = resolve_arms(arms, DEFAULTS | {"model": model, "engine": partial(memory.build)})
    engines = EngineCache(torch.device("cpu"), lambda message: None, parts.values())
    turns = []
    for _ in range(2):
        for arm in parts.values():
            num_blocks = engines.get(arm).num_blocks
            turns.append((num_blocks, len(memory.engines)))
    return turns


@pytest.mark.parametrize(
    ("num_gb", "turns"),
    [
        (64, [(8, 1), (16, 2), (8, 2), (8, 2), (16, 2), (8, 2)]),  # the third arm shares the first one's engine
        (24, [(8, 1), (16, 1), (8, 1)] * 2),  # the other would fit, but leave too little beside it
        (10, [(8, 1), (9, 1), (8, 1)] * 2),  # all that is free, as if it were alone
    ],
)
def test_engines_stay_side_by_side_where_each_is_as_it_would_be_alone(monkeypatch, num_gb, turns):
    arms = {
        "small": {"scheduler": {"max_num_seqs": 4}},
        "other": {"engine": {"block_size": 2}, "scheduler": {"max_num_seqs": 8}},
        "same": {"scheduler": {"max_num_seqs": 8}},
    }
    assert engines_of(Memory(monkeypatch, num_gb * GB), arms) == turns


def test_a_size_that_is_given_stands_and_takes_the_others_place_where_it_does_not_fit(monkeypatch):
    arms = {"large": {"engine": {"num_blocks": 40}}, "small": {"engine": {"num_blocks": 4}}}
    assert engines_of(Memory(monkeypatch, 64 * GB), arms) == [(40, 1), (4, 2), (40, 2), (4, 2)]
    assert engines_of(Memory(monkeypatch, 43 * GB), arms) == [(40, 1), (4, 1)] * 2
    assert LOADED == ["a"]


def test_an_engine_that_is_kept_keeps_its_warmth(monkeypatch):
    memory = Memory(monkeypatch, 64 * GB)
    model = partial(load_model_with_a_context, name="a", max_model_len=2)
    arms = resolve_arms(
        {"one": {"engine": {"num_blocks": 20}}, "other": {"engine": {"num_blocks": 24}}},
        DEFAULTS | {"model": model, "engine": partial(memory.build)},
    )
    engines = EngineCache(torch.device("cpu"), lambda message: None, arms.values())
    requests = synthetic(arrivals=poisson, lengths=LENGTHS, num_requests=48, rate=1.0).requests
    counts = []
    for arm in [*arms.values()] * 2:
        engine = engines.get(arm)
        engine.batches.clear()
        engines.warm_up(arm, engine, requests)
        counts.append(len(engine.batches) > 0)
    assert counts == [True, True, False, False]


def test_warm_up_ends_one_sequence_per_step():
    engines = EngineCache(torch.device("cpu"), lambda message: None)
    arm = resolve_arms({"only": {}}, DEFAULTS)["only"]
    engine = engines.get(arm)
    requests = synthetic(arrivals=poisson, lengths=LENGTHS, num_requests=48, rate=1.0).requests
    engines.warm_up(replace(arm, scheduler=partial(StaticScheduler, max_num_seqs=4)), engine, requests)
    assert engine.batches == [("prefill", [0, 1, 2, 3]), *[("decode", [0, 1, 2, 3])] * 3]
    engines.warm_up(replace(arm, scheduler=partial(ContinuousScheduler, max_num_seqs=3)), engine, requests)
    assert engine.batches == [("prefill", [0, 1, 2]), ("decode", [1, 2]), ("decode", [2])]
