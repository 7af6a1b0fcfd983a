"""Session: every turn of a conversation goes where its first one went, which is the server with the fewest requests."""

from collections.abc import Sequence as ListOf

from framework.contracts import Router, Server
from framework.core import Sequence
from framework.router.load import least_loaded


def session(servers: ListOf[Server]) -> Router:
    choose = least_loaded(servers)
    server_of: dict[str, Server] = {}

    def route(sequence: Sequence) -> Server:
        session_id = sequence.request.session_id
        if session_id is None:
            return choose(servers)
        if session_id not in server_of:
            server_of[session_id] = choose(servers)
        return server_of[session_id]

    return route
