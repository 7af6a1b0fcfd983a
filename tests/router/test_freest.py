"""Freest: free tokens of the KV cache are shared by the requests that are there."""

import pytest

from framework.router.freest import freest
from tests.clusters import make_servers, serve
from tests.fake_engine import requests_at
from tests.router.seen import sequence
from tests.router.test_migrate import seen


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ([(1, 60), (4, 40)], 0),  # 40 and 15 free tokens per request: more tokens, fewer requests
        ([(2, 60), (3, 10)], 1),  # 20 and 30
        ([(0, 0), (1, 0)], 0),
        ([(1, 150), (2, 140)], 1),  # none is free: 50 tokens too many for one, 20 for each of two
    ],
)
def test_the_server_with_the_most_free_tokens_per_request_is_named(loads, expected):
    assert freest(seen(*loads))(sequence()).index == expected


def test_a_finished_request_leaves_its_room():
    servers = make_servers(2)
    sequences = serve(requests_at((0.0, 100, 8), (0.0, 10, 3), (0.05, 10, 3), (5.0, 1, 1)), servers, freest(servers))
    assert [one.server for one in sequences] == [0, 1, 1, 0]
