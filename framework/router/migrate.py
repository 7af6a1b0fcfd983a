"""Migration: a running sequence leaves the busiest server for the freest one when they differ (Llumnix, OSDI 2024)."""

from collections.abc import Sequence as ListOf

from framework.checks import not_negative, positive
from framework.contracts import Rebalance, Server, ServerState


def migrate(servers: ListOf[Server], *, min_ratio: float = 2.0, interval: float = 0.1) -> Rebalance:
    """From the server of the lowest freeness to that of the highest, at most every `interval` s.

    Freeness is Llumnix's: free tokens of the KV cache per request, which is for how many steps the batch can go on. The
    highest has to be at least `min_ratio` times the lowest, and no lower than it once one request has moved.
    """
    if positive("migrate.min_ratio", min_ratio) < 1:
        raise ValueError(f"migrate.min_ratio must be at least 1, not {min_ratio}")
    not_negative("migrate.interval", interval)
    next_time = 0.0

    def rebalance(now: float) -> tuple[Server, Server] | None:
        nonlocal next_time
        if now < next_time:
            return None
        next_time = now + interval
        states = {server.index: server.state for server in servers}
        source = min(servers, key=lambda server: freeness(states[server.index]))
        target = max(servers, key=lambda server: freeness(states[server.index]))
        busy, free = states[source.index], states[target.index]
        if not busy.num_unfinished or freeness(free) < min_ratio * freeness(busy):
            return None
        num_tokens = busy.num_tokens / busy.num_unfinished
        if freeness(free, 1, num_tokens) < freeness(busy, -1, -num_tokens):
            return None
        return source, target

    return rebalance


def freeness(state: ServerState, more_requests: int = 0, more_tokens: float = 0.0) -> float:
    """Free tokens per request, with so many requests and tokens more."""
    num_free = state.num_slots - state.num_tokens - more_tokens
    return num_free / max(state.num_unfinished + more_requests, 1)
