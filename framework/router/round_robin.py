"""Round robin: one server after the other, whatever they do."""

from collections.abc import Sequence as ListOf
from itertools import cycle

from framework.contracts import Router, Server


def round_robin(servers: ListOf[Server]) -> Router:
    turns = cycle(servers)
    return lambda sequence: next(turns)
