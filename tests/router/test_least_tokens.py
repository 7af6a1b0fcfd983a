"""Least tokens: a long prompt counts for more than many short ones."""

from framework.router.least_tokens import least_tokens
from tests.clusters import make_servers, serve
from tests.fake_engine import requests_at
from tests.router.seen import State, see, sequence


def test_the_server_with_the_fewest_tokens_is_named():
    route = least_tokens(see(State(1, num_tokens=500), State(9, num_tokens=40)))
    assert route(sequence()).index == 1


def test_prompts_and_outputs_count_until_their_request_is_finished():
    servers = make_servers(2)
    requests = requests_at((0.0, 100, 8), (0.0, 10, 3), (0.0, 10, 3), (0.0, 10, 3), (5.0, 1, 1), (5.0, 1, 1))
    sequences = serve(requests, servers, least_tokens(servers))
    assert [one.server for one in sequences] == [0, 1, 1, 1, 0, 1]
