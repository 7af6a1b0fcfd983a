"""Pure functions Trace → Trace: window, first, stretch, all_at_once, thin, clip, restart.

Times are seconds on the trace's own clock. `stretch`, `all_at_once` and `restart` change them; `restart` renumbers.
"""

import math
from dataclasses import replace

import numpy as np

from framework.checks import positive, whole
from framework.core import Request, Trace
from framework.errors import NoRateError

MAX_TIME = 2.0**33  # seconds, 272 years; above it, neighbours of a float64 are more than a microsecond apart


def mean_rate(trace: Trace) -> float:
    """Mean arrival rate in requests/s: (n − 1) / (last − first arrival); needs two arrivals at different times."""
    times = [request.arrival_time for request in trace.requests]
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


def first(trace: Trace, num_requests: int) -> Trace:
    """The first `num_requests` requests; the trace must have as many."""
    whole("num_requests", num_requests)
    if num_requests > len(trace.requests):
        raise ValueError(f"num_requests={num_requests}, but the trace has only {len(trace.requests)} (null takes all)")
    return replace(trace, requests=trace.requests[:num_requests])


def stretch(trace: Trace, rate: float) -> Trace:
    """All requests, with the clock scaled so that the mean arrival rate becomes `rate` (requests/s)."""
    factor = mean_rate(trace) / positive("rate", rate)
    num_requests = len(trace.requests)
    check_span((num_requests - 1) / rate, f"rate={rate:g}: {num_requests} requests at this rate")
    requests = [replace(request, arrival_time=request.arrival_time * factor) for request in trace.requests]
    return replace(trace, requests=requests)


def all_at_once(trace: Trace) -> Trace:
    """All requests at 0 s."""
    return replace(trace, requests=[replace(request, arrival_time=0.0) for request in trace.requests])


def thin(trace: Trace, rate: float, seed: int) -> Trace:
    """Each request kept with probability `rate` / own mean rate, independently; arrival times stay.

    With one seed, what a lower rate keeps is part of what a higher one keeps.
    """
    own_rate = mean_rate(trace)
    if positive("rate", rate) > own_rate:
        raise ValueError(
            f"thinning cannot raise the arrival rate to {rate:g} requests/s: the trace has {own_rate:g}; "
            "use rescale=stretch or a lower rate"
        )
    draws = np.random.default_rng(seed).random(len(trace.requests)).tolist()
    kept = [request for request, draw in zip(trace.requests, draws, strict=True) if draw < rate / own_rate]
    if not kept:
        raise ValueError(f"thinning from {own_rate:g} to {rate:g} requests/s left none of {len(draws)} requests")
    return replace(trace, requests=kept)


def clip(trace: Trace, max_prompt_tokens: int | None = None, max_output_tokens: int | None = None) -> Trace:
    """Lengths above a limit cut to it (None: no limit); a cut prompt keeps the prefix blocks that it still reaches."""
    max_prompt = math.inf if max_prompt_tokens is None else whole("max_prompt_tokens", max_prompt_tokens)
    max_output = math.inf if max_output_tokens is None else whole("max_output_tokens", max_output_tokens)
    return replace(trace, requests=[_clipped(request, max_prompt, max_output) for request in trace.requests])


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
