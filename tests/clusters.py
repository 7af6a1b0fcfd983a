"""Servers with engines that measure nothing, and a trace for them."""

from framework.contracts import Router
from framework.core import Request, Sequence
from framework.replay import Server, replay
from framework.scheduler.continuous import ContinuousScheduler
from framework.trace.source import TraceSource
from tests.fake_engine import FakeEngine


def make_servers(num_servers: int, step_times: list[float] | None = None, max_num_seqs: int = 8) -> list[Server]:
    """Continuous batching on each; a step of server i takes `step_times[i]` s (None: 0.1 s)."""
    servers = []
    for index in range(num_servers):
        elapsed = 0.1 if step_times is None else step_times[index]
        engine = FakeEngine(lambda batch, elapsed=elapsed: elapsed)
        scheduler = ContinuousScheduler(engine.num_blocks, engine.block_size, max_num_seqs=max_num_seqs)
        servers.append(Server(scheduler, engine, index))
    return servers


def serve(requests: list[Request], servers: list[Server], route: Router) -> list[Sequence]:
    return replay(TraceSource(requests), servers, route)
