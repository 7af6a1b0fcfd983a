"""Freest: the server with the most free tokens of its KV cache per request (Llumnix, OSDI 2024)."""

from collections.abc import Sequence as ListOf

from framework.contracts import Router, Server
from framework.router.load import least_loaded
from framework.router.migrate import freeness


def freest(servers: ListOf[Server]) -> Router:
    choose = least_loaded(servers, lambda state: -freeness(state))
    return lambda sequence: choose(servers)
