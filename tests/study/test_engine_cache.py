"""Models are loaded once, and warmed before they are timed."""

from dataclasses import replace
from functools import partial

import torch

from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from framework.study.arms import resolve_arms
from framework.study.engine_cache import EngineCache
from framework.trace.arrivals import poisson
from framework.trace.synthetic import synthetic
from tests.study.fake_study import DEFAULTS, LENGTHS, LOADED, load_fake_model


def test_arms_that_share_a_model_load_it_once_wherever_they_stand(study):
    other = partial(load_fake_model, name="b")
    arms = {"first": {}, "second": {"model": other}, "third": {"scheduler": {"max_num_seqs": 2}}}
    study(arms, [1.0])
    assert LOADED == ["a", "b"]


def test_warm_up_ends_one_sequence_per_step():
    engines = EngineCache(torch.device("cpu"), lambda message: None)
    arm = resolve_arms({"only": {}}, DEFAULTS)["only"]
    engine = engines.get(arm)
    requests = synthetic(arrivals=poisson, lengths=LENGTHS, num_requests=48, rate=1.0).requests
    engines.warm_up(replace(arm, scheduler=partial(StaticScheduler, max_num_seqs=4)), engine, requests)
    assert engine.batches == [("prefill", [0, 1, 2, 3]), *[("decode", [0, 1, 2, 3])] * 3]
    engines.warm_up(replace(arm, scheduler=partial(ContinuousScheduler, max_num_seqs=3)), engine, requests)
    assert engine.batches == [("prefill", [0, 1, 2]), ("decode", [1, 2]), ("decode", [2])]
