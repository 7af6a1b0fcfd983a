"""Least tokens: the server whose unfinished requests have the fewest tokens, prompts and outputs so far."""

from collections.abc import Sequence as ListOf

from framework.contracts import Router, Server
from framework.router.load import least_loaded, num_tokens


def least_tokens(servers: ListOf[Server]) -> Router:
    choose = least_loaded(servers, num_tokens)
    return lambda sequence: choose(servers)
