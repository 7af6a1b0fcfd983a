"""What every router must do: name servers of this replay, and in the end serve every request exactly once."""

import random

import pytest

import framework.router
from framework.contracts import Router
from framework.core import Request
from tests.clusters import make_servers, serve
from tests.contracts.implementations import factories


@pytest.fixture(params=factories(framework.router, Router), ids=lambda make: make.__name__)
def make_router(request):
    return request.param


@pytest.mark.parametrize("num_servers", [1, 2, 5])
def test_every_request_is_served_once_by_one_server(make_router, num_servers):
    rng = random.Random(0)
    times = sorted(rng.uniform(0, 5) for _ in range(60))
    requests = [Request(index, time, rng.randint(1, 9), rng.randint(1, 9)) for index, time in enumerate(times)]
    servers = make_servers(num_servers, step_times=[0.05 * (index + 1) for index in range(num_servers)], max_num_seqs=2)
    sequences = serve(requests, servers, make_router(servers))
    assert [one.output_token_ids for one in sequences] == [list(range(one.num_output_tokens)) for one in requests]
    seen = [{one for _, batch in server.engine.batches for one in batch} for server in servers]
    assert sorted(one for ids in seen for one in ids) == list(range(60))
