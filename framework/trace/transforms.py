"""Pure functions Trace → Trace: window, cut_gaps, first, stretch, arrive_at, all_at_once, limit, thin, clip, restart.

Times are seconds on the trace's own clock. `restart` renumbers the requests. Of a session all move with its start.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from framework.checks import positive, whole
from framework.core import Request, Trace
from framework.errors import NoRateError

Value = TypeVar("Value")
TOO_LONG = "turns of sessions that are over max_prompt_tokens by then"
MAX_TIME = 2.0**33  # seconds, 272 years; above it, neighbours of a float64 are more than a microsecond apart


def starts(trace: Trace) -> list[Request]:
    """The requests that arrive at their own time, not after a think time: those with which a session starts."""
    return [request for request in trace.requests if request.think_time is None]


def per_request(trace: Trace, of_starts: Iterable[Value]) -> Iterator[Value]:
    """For every request the value of the start of its session, behind which its turns stand; one is given per start."""
    values = iter(of_starts)
    for request in trace.requests:
        if request.think_time is None:
            value = next(values)
        yield value


def keep(trace: Trace, requests: list[Request], reason: str) -> Trace:
    """The trace with these of its requests; the others are counted in `dropped`."""
    num_dropped = len(trace.requests) - len(requests)
    return replace(trace, requests=requests, dropped=trace.dropped | ({reason: num_dropped} if num_dropped else {}))


def continued(turn: Request, before: Request, num_said: int, said: tuple[int, ...] | None) -> Request:
    """A turn whose new text is behind other tokens, `num_said` of them; `said` are these where they are known.

    Its new text is what it has behind the turn `before` it and the whole answer to that.
    """
    num_new_tokens = turn.num_prompt_tokens - before.num_prompt_tokens - before.num_output_tokens
    text = turn.prompt_token_ids
    if text is not None and said is not None:
        text = (*said, *text[-num_new_tokens:])
    return replace(turn, num_prompt_tokens=num_said + num_new_tokens, prompt_token_ids=text)


def mean_rate(trace: Trace) -> float:
    """Mean rate of the starts in 1/s: (n − 1) / (last − first arrival); needs two arrivals at different times."""
    times = [request.arrival_time for request in starts(trace)]
    if len(times) < 2 or times[-1] == times[0]:
        raise NoRateError(
            f"a trace of {len(times)} request(s) that span 0 s has no arrival rate to rescale: set rates=[null]"
        )
    return (len(times) - 1) / (times[-1] - times[0])


def check_span(span: float, what: str) -> None:
    """ValueError if the clock could not tell microseconds apart over `span` seconds: short steps would take none."""
    if span > MAX_TIME:
        raise ValueError(f"{what} last {span:.3g} s, and the clock resolves a microsecond up to {MAX_TIME:.3g} s only")


def window(trace: Trace, start: float | None, end: float | None) -> Trace:
    """The requests that arrive in [start, end) seconds; None leaves that side open."""
    low, high = 0.0 if start is None else start, math.inf if end is None else end
    if not 0 <= low < high:
        raise ValueError(f"window=[{start}, {end}] is not a span of seconds with 0 <= start < end")
    kept = [request for request in trace.requests if low <= request.arrival_time < high]
    if not kept:
        earliest, latest = trace.requests[0].arrival_time, trace.requests[-1].arrival_time
        raise ValueError(f"window=[{start}, {end}] holds no request; the trace spans {earliest:g} to {latest:g} s")
    return replace(trace, requests=kept)


def cut_gaps(trace: Trace, max_gap: float) -> Trace:
    """No more than `max_gap` seconds from one arrival to the next: a longer silence is cut to it."""
    times = np.array([request.arrival_time for request in starts(trace)])
    gaps = np.minimum(np.diff(times), positive("max_gap", max_gap))
    return arrive_at(trace, times[0] + np.concatenate([[0.0], np.cumsum(gaps)]))


def first(trace: Trace, num_requests: int) -> Trace:
    """The first `num_requests` requests; the trace must have as many."""
    whole("num_requests", num_requests)
    if num_requests > len(trace.requests):
        raise ValueError(f"num_requests={num_requests}, but the trace has only {len(trace.requests)} (null takes all)")
    return replace(trace, requests=trace.requests[:num_requests])


def stretch(trace: Trace, rate: float) -> Trace:
    """All requests, with the clock scaled so that the mean rate of the starts becomes `rate` (1/s)."""
    factor = mean_rate(trace) / positive("rate", rate)
    num_requests = len(starts(trace))
    check_span((num_requests - 1) / rate, f"rate={rate:g}: {num_requests} requests at this rate")
    requests = [replace(request, arrival_time=request.arrival_time * factor) for request in trace.requests]
    return replace(trace, requests=requests)


def arrive_at(trace: Trace, times: npt.NDArray[np.float64]) -> Trace:
    """The same requests at other times, (starts,) seconds that do not fall."""
    arrivals = zip(trace.requests, per_request(trace, times.tolist()), strict=True)
    return replace(trace, requests=[replace(request, arrival_time=time) for request, time in arrivals])


def all_at_once(trace: Trace) -> Trace:
    """All requests at 0 s."""
    return replace(trace, requests=[replace(request, arrival_time=0.0) for request in trace.requests])


def limit(trace: Trace, max_concurrency: int | None) -> Trace:
    """At most so many sessions in progress (None: any number): a closed loop of so many users."""
    if max_concurrency is None:
        return trace
    return replace(trace, max_concurrency=whole("max_concurrency", max_concurrency))


def thin(trace: Trace, rate: float, seed: int) -> Trace:
    """Each request kept with probability `rate` / own mean rate, independently; arrival times stay.

    A session is kept as a whole. With one seed, what a lower rate keeps is part of what a higher one keeps.
    """
    own_rate = mean_rate(trace)
    if positive("rate", rate) > own_rate:
        raise ValueError(
            f"thinning cannot raise the arrival rate to {rate:g} requests/s: the trace has {own_rate:g}; "
            "use rescale=stretch or a lower rate"
        )
    draws = np.random.default_rng(seed).random(len(starts(trace))).tolist()
    drawn = zip(trace.requests, per_request(trace, draws), strict=True)
    kept = [request for request, draw in drawn if draw < rate / own_rate]
    if not kept:
        raise ValueError(f"thinning from {own_rate:g} to {rate:g} requests/s left none of {len(draws)} requests")
    return replace(trace, requests=kept)


def clip(trace: Trace, max_prompt_tokens: int | None = None, max_output_tokens: int | None = None) -> Trace:
    """Lengths above a limit cut to it (None: no limit); a cut prompt keeps the prefix blocks that it still reaches.

    A conversation ends before a turn whose prompt would still be longer; such turns are counted in `dropped`.
    """
    max_prompt = math.inf if max_prompt_tokens is None else whole("max_prompt_tokens", max_prompt_tokens)
    max_output = math.inf if max_output_tokens is None else whole("max_output_tokens", max_output_tokens)
    requests: list[Request] = []
    before = clipped = None
    for request in trace.requests:
        if request.think_time is None:
            clipped = _clipped(request, max_prompt, max_output)
        elif before is not None and clipped is not None:
            clipped = _clipped_turn(request, before, clipped, max_prompt, max_output)
        if clipped is not None:
            requests.append(clipped)
        before = request
    return keep(trace, requests, TOO_LONG)


def restart(trace: Trace) -> Trace:
    """The same requests with ids 0 … n − 1 and the first arrival at 0 s."""
    start = trace.requests[0].arrival_time
    if start == 0 and all(request.request_id == index for index, request in enumerate(trace.requests)):
        return trace
    requests = [
        replace(request, request_id=index, arrival_time=request.arrival_time - start)
        for index, request in enumerate(trace.requests)
    ]
    return replace(trace, requests=requests)


def _clipped(request: Request, max_prompt: float, max_output: float) -> Request:
    prompt, output = min(request.num_prompt_tokens, max_prompt), min(request.num_output_tokens, max_output)
    if prompt == request.num_prompt_tokens and output == request.num_output_tokens:
        return request
    token_ids = request.prompt_token_ids
    return replace(
        request,
        num_prompt_tokens=int(prompt),
        num_output_tokens=int(output),
        prefix_ids=request.prefix_ids[: math.ceil(prompt / request.prefix_block_size)],
        prompt_token_ids=None if token_ids is None else token_ids[: int(prompt)],
    )


def _clipped_turn(
    turn: Request, before: Request, clipped: Request, max_prompt: float, max_output: float
) -> Request | None:
    """A turn after one that was `before` and is `clipped` now; None if its prompt would be too long."""
    text, said = turn.prompt_token_ids, clipped.prompt_token_ids
    if text is not None and said is not None:
        said = (*said, *text[before.num_prompt_tokens :][: clipped.num_output_tokens])
    turn = continued(turn, before, clipped.num_prompt_tokens + clipped.num_output_tokens, said)
    if turn.num_prompt_tokens > max_prompt:
        return None
    return replace(turn, num_output_tokens=int(min(turn.num_output_tokens, max_output)))
