"""Adapter-aware: a server that has the request's adapter, unless all of these have many more requests than another."""

from collections.abc import Sequence as ListOf

from framework.checks import whole
from framework.contracts import Router, Server
from framework.core import Sequence
from framework.router.load import least_loaded


def adapter_aware(servers: ListOf[Server], *, max_excess: int = 8) -> Router:
    """A server with the adapter is named if it has at most `max_excess` unfinished requests more than any other."""
    whole("router.max_excess", max_excess, at_least=0)
    choose = least_loaded(servers)

    def route(sequence: Sequence) -> Server:
        adapter_id = sequence.request.adapter_id
        if adapter_id is None:
            return choose(servers)
        limit = min(server.state.num_unfinished for server in servers) + max_excess
        with_adapter = [
            server
            for server in servers
            if server.state.num_unfinished <= limit and server.state.has_adapter(adapter_id)
        ]
        return choose(with_adapter or servers)

    return route
