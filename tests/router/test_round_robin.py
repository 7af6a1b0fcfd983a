"""Round robin: by hand, and with servers of different speed."""

from framework.core import Request, Sequence
from framework.router.round_robin import round_robin
from tests.clusters import make_servers, serve
from tests.fake_engine import requests_at


def test_servers_take_turns():
    servers = make_servers(3)
    route = round_robin(servers)
    names = [route(Sequence(Request(index, 0.0, 1, 1))).index for index in range(7)]
    assert names == [0, 1, 2, 0, 1, 2, 0]


def test_a_slow_server_gets_its_turn_all_the_same():
    servers = make_servers(2, step_times=[0.1, 1.0])
    serve(requests_at((0.0, 4, 2), (0.0, 4, 2), (0.0, 4, 2), (0.0, 4, 2)), servers, round_robin(servers))
    assert [server.engine.batches for server in servers] == [
        [("prefill", [0, 2]), ("decode", [0, 2])],
        [("prefill", [1, 3]), ("decode", [1, 3])],
    ]
