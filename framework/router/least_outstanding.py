"""Least outstanding: the server with the fewest unfinished requests (join the shortest queue)."""

from collections.abc import Sequence as ListOf

from framework.contracts import Router, Server
from framework.router.load import least_loaded


def least_outstanding(servers: ListOf[Server]) -> Router:
    choose = least_loaded(servers)
    return lambda sequence: choose(servers)
