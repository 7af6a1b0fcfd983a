"""Arms at each size of the cache, and the tables of what they found."""

from functools import partial

import pandas as pd
import pytest

from experiments.prefix_caching.sizes import (
    describe_hits,
    hits_table,
    one_at_a_time,
    over_cache_sizes,
    reported_by_size,
)
from framework.config import describe
from framework.core import Request
from framework.scheduler.continuous import ContinuousScheduler
from framework.study.arms import resolve_arms
from tests.fake_engine import FakeEngine
from tests.study.fake_study import DEFAULTS

ENGINE = partial(FakeEngine, block_size=4)
ARMS = resolve_arms(
    {
        "none": {"scheduler": partial(ContinuousScheduler), "engine": ENGINE},
        "lru": {"scheduler": partial(ContinuousScheduler, prefix_cache="lru"), "engine": ENGINE},
    },
    DEFAULTS,
)
HITS = pd.DataFrame(
    [
        ("none", 32, 2.0, 2.0, 0.0, float("nan"), float("nan"), 0.4, 0.3, 0.5, 0.9, 0.8, 1.0),
        ("lru", 16, 2.0, 2.0, 0.25, 0.3, 0.5, 0.2, 0.1, 0.3, 0.6, 0.5, 0.7),
        ("lru", 32, 2.0, 2.0, 0.45, 0.5, 0.5, 0.1, 0.05, 0.2, 0.4, 0.3, 0.5),
    ],
    columns=["base_arm", "num_tokens", "rate", "offered_rate", "prefix_hits", "one_at_a_time", "infinite"]
    + [f"ttft_{name}{end}" for name in ("p50", "p99") for end in ("", "_low", "_high")],
)


def test_arms_with_a_prefix_cache_have_every_size_and_the_others_the_largest():
    sized = over_cache_sizes(ARMS, [16, 32])
    assert {name: one.num_tokens for name, one in sized.items()} == {"none": 32, "lru-16": 16, "lru-32": 32}
    assert {name: describe(one.arm.engine)["num_blocks"] for name, one in sized.items()} == {
        "none": 8, "lru-16": 4, "lru-32": 8,
    }  # fmt: skip


def test_sizes_in_tokens_need_a_block_size_that_a_cost_model_does_not_give():
    arms = resolve_arms({"lru": {"engine": partial(FakeEngine, block_size=None)}}, DEFAULTS)
    with pytest.raises(ValueError, match=r"engine.block_size=null leaves it to a cost model"):
        over_cache_sizes(arms, [16])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], "cache_sizes is empty"),
        ([0], "cache_sizes"),
        ([18], r"cache_sizes=18 is no multiple of arms.none.engine.block_size=4|arms.lru"),
    ],
)
def test_sizes_that_are_none_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        over_cache_sizes(ARMS, sizes)


@pytest.mark.parametrize(
    ("reported", "message"),
    [
        ({"lruu": [0.3]}, "reported_hits has 'lruu', which is no arm with a prefix cache; did you mean 'lru'?"),
        ({"lru": [30]}, "reported_hits.lru=.30.: give a share from 0 to 1 for each of cache_sizes=.16."),
        ({"lru": []}, "reported_hits.lru=.*: give a share"),
    ],
)
def test_reported_shares_are_checked(reported, message):
    with pytest.raises(ValueError, match=message):
        reported_by_size(reported, [16], over_cache_sizes(ARMS, [16]))


def test_shares_without_a_replay_beside_the_reported_ones():
    requests = [
        Request(index, 0.0, 5, 1, prefix_ids=(name,), prefix_block_size=4) for index, name in enumerate("abcab")
    ]
    table = one_at_a_time(over_cache_sizes(ARMS, [8, 16]), requests, {"lru": {8: 0.25}})
    assert table["cache (tokens)"].tolist() == [8, 16, "infinite"]
    assert table["found"].tolist() == pytest.approx([0, 8 / 25, 8 / 25])
    assert table["reported"].tolist()[0] == 0.25
    assert "reported" not in one_at_a_time(over_cache_sizes(ARMS, [8]), requests, {})


def test_the_table_has_what_was_found_of_what_there_is():
    table = hits_table(HITS, {"lru": {32: 0.4}})
    assert table["found"].tolist() == [0.0, 0.25, 0.45]
    assert table["reported"].tolist()[2] == 0.4
    assert table["TTFT P50 (ms)"].tolist() == [400, 200, 100]
    assert "reported" not in hits_table(HITS, {})
    (note,) = describe_hits(HITS)
    assert note.startswith("lru: with 32 tokens of KV cache 45.0%")
