"""Servers that take one request at a time for exponential times: queues whose waits have closed forms."""

import random as randomness
from itertools import accumulate

from framework.core import Batch, Request
from framework.replay import Server
from framework.scheduler.continuous import ContinuousScheduler
from tests.clusters import serve
from tests.fake_engine import FakeEngine

Jobs = tuple[list[Request], dict[int, float]]  # with the time (s) that each takes


def exponential_requests(num_servers: int, load: float, num: int, seed: int) -> Jobs:
    """Poisson arrivals of one-token requests that take 1 s on average, for `num_servers` with a `load` below 1."""
    rng = randomness.Random(seed)
    times = accumulate(rng.expovariate(load * num_servers) for _ in range(num))
    requests = [Request(index, time, 1, 1) for index, time in enumerate(times)]
    return requests, {request.request_id: rng.expovariate(1.0) for request in requests}


def mean_delay(jobs: Jobs, num_servers: int, make_router, **keywords) -> float:
    """From arrival to start (s), on average, without the first tenth of the requests."""
    requests, service_time = jobs

    def step_time(batch: Batch) -> float:
        return service_time[batch.sequences[0].request.request_id]

    servers = []
    for index in range(num_servers):
        engine = FakeEngine(step_time)
        scheduler = ContinuousScheduler(engine.num_blocks, engine.block_size, max_num_seqs=1)
        servers.append(Server(scheduler, engine, index))
    sequences = serve(requests, servers, make_router(servers, **keywords))
    later = sequences[len(sequences) // 10 :]
    return sum(one.scheduled_time - one.arrival_time for one in later) / len(later)
