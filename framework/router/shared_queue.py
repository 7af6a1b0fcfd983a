"""Shared queue: requests wait at the router until a server has a seat, and go to the one with the fewest requests."""

from collections.abc import Sequence as ListOf

from framework.contracts import Router, Server
from framework.core import Sequence
from framework.router.load import least_loaded


class SharedQueue:
    """What `shared_queue` makes."""

    holds = True

    def __init__(self, servers: ListOf[Server]) -> None:
        self.servers, self.choose = servers, least_loaded(servers)

    def __call__(self, sequence: Sequence) -> Server | None:
        seated = [server for server in self.servers if server.state.num_free_seats]
        return self.choose(seated) if seated else None


def shared_queue(servers: ListOf[Server]) -> Router:
    for server in servers:
        if server.view_delay:
            raise ValueError(
                "router=shared_queue has servers take requests when they have a seat, so "
                f"view_delay={server.view_delay} must be 0"
            )
    return SharedQueue(servers)
