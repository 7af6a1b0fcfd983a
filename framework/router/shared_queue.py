"""Shared queue: requests wait at the router until a server has a seat, and go to the one with the fewest requests."""

from collections.abc import Sequence as ListOf

from framework.core import Router, Sequence, Server
from framework.router.load import least_loaded


def shared_queue(servers: ListOf[Server]) -> Router:
    for server in servers:
        if server.view_delay:
            raise ValueError(
                "router=shared_queue has servers take requests when they have a seat, so "
                f"view_delay={server.view_delay} must be 0"
            )
    choose = least_loaded(servers)

    def route(sequence: Sequence) -> Server | None:
        seated = [server for server in servers if server.state.num_free_seats]
        return choose(seated) if seated else None

    return route
