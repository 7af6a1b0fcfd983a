"""Who moves where when loads differ, and a migration by hand."""

import random

import pytest

from framework.core import Request
from framework.handover import Migration, Transfers
from framework.link import Link
from framework.replay import replay
from framework.router.migrate import migrate
from framework.router.random import random as at_random
from framework.server_load import ServerLoad
from framework.study.arms import SeenServer
from framework.trace.source import TraceSource
from tests.fake_engine import requests_at
from tests.test_handover import log_of, make_server


def seen(*loads, num_slots=100):
    """Servers with so many requests and tokens each."""
    servers = []
    for index, (num_unfinished, num_tokens) in enumerate(loads):
        load = ServerLoad(8, num_slots=num_slots)
        load.num_unfinished, load.num_told_tokens = num_unfinished, num_tokens
        servers.append(SeenServer(index, 0.0, load))
    return servers


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ([(4, 40), (2, 20), (1, 20)], (0, 2)),  # free tokens per request: 15, 40, 80
        ([(2, 20), (1, 20)], None),  # 40 and 80; with one more here and fewer there 90 and 35
        ([(2, 20), (0, 0)], (0, 1)),
        ([(1, 60), (0, 0)], None),  # it would only change places
        ([(0, 0), (0, 0)], None),
        ([(3, 0), (2, 0)], None),  # 33 and 50: not twice as many
    ],
)
def test_the_server_with_the_least_room_per_request_gives_to_the_one_with_the_most(loads, expected):
    named = migrate(seen(*loads))(0.0)
    assert (None if named is None else tuple(server.index for server in named)) == expected


def test_two_moves_are_an_interval_apart():
    rebalance = migrate(seen((4, 40), (0, 0)), interval=1.0)
    assert [rebalance(now) is None for now in (0.0, 0.5, 0.99, 1.0, 1.5)] == [False, True, True, False, True]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"min_ratio": 0.5}, r"migrate.min_ratio must be at least 1, not 0.5"),
        ({"interval": -1}, r"migrate.interval=-1 is not a finite number of at least 0"),
    ],
)
def test_what_cannot_be_is_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        migrate(seen((0, 0)), **keywords)


def serve(requests, servers, route, link, **keywords):
    for server in servers:
        server.engine.num_tokens = servers[0].engine.num_tokens
    mover = Migration(Transfers(servers, link, 1), migrate(servers, **keywords))
    sequences = replay(TraceSource(requests), servers, route, movers=[mover])
    assert [one.output_token_ids for one in sequences] == [list(range(one.num_output_tokens)) for one in requests]
    for server in servers:
        assert server.scheduler.num_used_blocks == server.scheduler.num_unfinished == 0
        assert (server.load.num_unfinished, server.load.num_tokens) == (0, 0)
    return sequences


@pytest.mark.parametrize("num_steps_ahead", [0, 1])
def test_the_shortest_sequence_moves_once_its_step_in_flight_has_ended(num_steps_ahead):
    """Blocks have 4 tokens and 4 bytes; the shorter one has 2 when it moves, and stands still for 0.25 s."""
    servers = [make_server(index, num_steps_ahead=num_steps_ahead) for index in (0, 1)]
    requests = requests_at((0.0, 12, 5), (0.0, 4, 6))
    long, short = serve(requests, servers, lambda sequence: servers[0], Link(bandwidth=32.0))
    assert (long.num_moves, long.server) == (0, 0)
    assert (short.num_moves, short.prefill_server, short.server) == (1, 0, 1)
    if num_steps_ahead:  # a decode step was in flight when the first tokens came
        assert (short.transfer_wait, short.transfer_time) == (0.0, 0.25)
        assert log_of(*servers)[:4] == [
            (0.0, 0, "prefill", [0, 1]),
            (1.0, 0, "decode", [0, 1]),
            (1.125, 0, "decode", [0]),
            (1.25, 0, "decode", [0]),
        ]
        assert log_of(servers[1])[0] == (1.375, 1, "decode", [1])
    else:
        assert (short.transfer_wait, short.transfer_time) == (0.0, 0.125)  # one block: its 4 prompt tokens
        assert log_of(*servers)[:3] == [
            (0.0, 0, "prefill", [0, 1]),
            (1.0, 0, "decode", [0]),
            (1.125, 0, "decode", [0]),
        ]
        assert log_of(servers[1])[0] == (1.125, 1, "decode", [1])


@pytest.mark.parametrize("seed", range(4))
def test_every_request_is_served_once_with_all_its_tokens_wherever_it_moves(seed):
    rng = random.Random(seed)
    times = sorted(rng.uniform(0, 6) for _ in range(40))
    requests = [Request(index, time, rng.randint(1, 20), rng.randint(1, 12)) for index, time in enumerate(times)]
    options = {"num_blocks": 12, "max_num_seqs": 4, "steps": rng.choice(["mixed", "prompts_first"])}
    servers = [make_server(index, num_steps_ahead=rng.randint(0, 1), **options) for index in range(3)]
    link = Link(bandwidth=rng.choice([8.0, 1e6]), copy=rng.choice(["at_end", "layer_by_layer"]))
    sequences = serve(requests, servers, at_random(servers, seed=seed), link, min_ratio=1.2, interval=0.0)
    assert sum(one.num_moves for one in sequences) > 3
