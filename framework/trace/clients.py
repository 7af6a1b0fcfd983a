"""Whose requests they are: a law that gives a trace clients, several clients in one trace, and a limit to each."""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import TypedDict

import numpy as np

from framework.checks import positive, whole
from framework.core import Request, Trace
from framework.trace.popularity import Law
from framework.trace.transforms import clip, keep, per_request, restart, starts

OVER_LIMIT = "requests over the limit of their client"


class Client(TypedDict):
    """A client's `share` of the offered rate, in proportion to the others', and what it sends."""

    share: float
    trace: Callable[..., Trace]  # called with num_requests=, rate= and seed=


def assign_clients(trace: Trace, law: Law | None, rng: np.random.Generator) -> Trace:
    """Every request with the client `client-<number>` that the law draws, and a conversation one; None: as they are."""
    if law is None:
        return trace
    numbers = per_request(trace, law(rng, len(starts(trace))).tolist())
    drawn = zip(trace.requests, numbers, strict=True)
    return replace(trace, requests=[replace(request, client_id=f"client-{number}") for request, number in drawn])


def of_clients(
    *,
    clients: dict[str, Client],
    num_requests: int,
    max_prompt_tokens: int | None = None,
    max_output_tokens: int | None = None,
    rate: float | None = None,
    seed: int = 0,
) -> Trace:
    """About `num_requests` requests of several clients, each at its share of `rate` (1/s), merged by arrival time.

    Every client sends its share of the requests, rounded, by a trace of its own that starts at 0 s, with a seed of its
    own; so all of them send for as long. Longer lengths are clipped to the two limits. ValueError without a client, for
    one whose share is less than a request, and for a closed loop of users, of which no trace has several.
    """
    if not clients:
        raise ValueError("trace.clients is empty: give each client a share and a trace")
    shares = {name: positive(f"trace.clients.{name}.share", client["share"]) for name, client in clients.items()}
    total = sum(shares.values())
    requests: list[Request] = []
    dropped: Counter[str] = Counter()
    unread: dict[str, None] = {}
    for index, (name, client) in enumerate(clients.items()):
        share = shares[name] / total
        num_own = round(share * whole("trace.num_requests", num_requests))
        if not num_own:
            raise ValueError(f"trace.clients.{name}.share={shares[name]:g} of {num_requests} requests is none")
        own_rate = None if rate is None else share * rate
        trace = client["trace"](num_requests=num_own, rate=own_rate, seed=seed * len(clients) + index)
        if trace.max_concurrency is not None:
            raise ValueError(f"trace.clients.{name}.trace.max_concurrency={trace.max_concurrency}: leave it null")
        requests += [owned(request, name) for request in trace.requests]
        dropped.update(trace.dropped)
        unread |= dict.fromkeys(trace.unread)
    requests.sort(key=lambda request: request.arrival_time)
    trace = clip(Trace(requests, dict(dropped), tuple(unread)), max_prompt_tokens, max_output_tokens)
    return restart(trace)


def owned(request: Request, client: str) -> Request:
    """The request as one of the client's, whose sessions are nobody else's."""
    session_id = None if request.session_id is None else f"{client}/{request.session_id}"
    return replace(request, client_id=client, session_id=session_id)


def refusing(
    *, trace: Callable[..., Trace], limit: int, window: float, rate: float | None = None, seed: int = 0
) -> Trace:
    """What a server that limits every client takes of `trace`: a request over the limit is refused as it comes.

    Of a client it takes at most `limit` requests in any `window`, which is a share of the trace's time: so it takes the
    same ones at every rate. The others are counted in `dropped`. ValueError for requests that wait for an answer.
    """
    whole("trace.limit", limit)
    given = trace(rate=rate, seed=seed)
    if given.max_concurrency is not None or any(request.think_time is not None for request in given.requests):
        raise ValueError("trace.limit needs to know when requests come: closed turns and closed loops wait for answers")
    span = positive("trace.window", window) * given.requests[-1].arrival_time
    taken: dict[str | None, deque[float]] = {}
    kept = []
    for request in given.requests:
        times = taken.setdefault(request.client_id, deque(maxlen=limit))
        if len(times) < limit or request.arrival_time - times[0] > span:
            times.append(request.arrival_time)
            kept.append(request)
    return keep(given, kept, OVER_LIMIT)
