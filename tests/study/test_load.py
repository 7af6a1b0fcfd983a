"""Loads as folders, records and messages name them, and what a trace is called with."""

import pytest

from framework.study.load import Load


@pytest.mark.parametrize(
    ("load", "label", "shown", "keywords", "record"),
    [
        (Load(), "recorded", "recorded rate", {"rate": None}, {"rate": None}),
        (Load(2.5), "rate2.5", "2.5 req/s", {"rate": 2.5}, {"rate": 2.5}),
        (Load(users=4), "users4", "users=4", {"rate": None, "max_concurrency": 4}, {"rate": None, "users": 4}),
    ],
)
def test_a_load_is_a_rate_or_users(load, label, shown, keywords, record):
    assert (load.label, str(load)) == (label, shown)
    assert (load.trace_keywords, load.record) == (keywords, record)
    assert Load(**record) == load
