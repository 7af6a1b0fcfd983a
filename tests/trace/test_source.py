"""A trace's requests arrive when it says, whatever finishes."""

from framework.trace.source import TraceSource
from tests.fake_engine import requests_at


def test_every_request_arrives_at_its_own_time_and_none_follows():
    requests = requests_at((0.0, 4, 1), (0.5, 2, 3))
    source = TraceSource(requests)
    assert source.requests == requests
    first, second = source.begin()
    assert [first.request, second.request] == requests
    assert [first.arrival_time, second.arrival_time] == [0.0, 0.5]
    assert list(source.follow(first, 1.0)) == []
