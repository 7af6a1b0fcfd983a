"""A synthetic trace: arrivals, request lengths and adapters, drawn from independent streams of one seed.

Lengths and adapters do not depend on the rate: every rate of a study replays the same requests.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import repeat

import numpy as np

from framework.checks import whole
from framework.core import Request, Trace
from framework.trace.arrivals import Times
from framework.trace.lengths import Lengths
from framework.trace.popularity import Law, assign_adapters
from framework.trace.transforms import check_span, clip


def synthetic(
    *,
    arrivals: Callable[[np.random.Generator, int, float | None], Times],
    lengths: Callable[[np.random.Generator, int], tuple[Lengths, Lengths]],
    num_requests: int,
    max_prompt_tokens: int | None = None,
    max_output_tokens: int | None = None,
    adapters: Law | None = None,
    rate: float | None = None,
    seed: int = 0,
) -> Trace:
    """`num_requests` requests that arrive at `rate` requests/s; same seed, same trace.

    The times are scaled so that the mean gap is 1 / `rate` exactly: what few random gaps offer may be far from it.

    `arrivals` is one of arrivals.py, `lengths` one of lengths.py; longer lengths are clipped to the two limits.
    `adapters` is a law of popularity.py (None: no adapters).
    """
    whole("num_requests", num_requests)
    arrival_rng, length_rng, adapter_rng = np.random.default_rng(seed).spawn(3)
    prompts, outputs = lengths(length_rng, num_requests)
    unplaced = list(map(Request, range(num_requests), repeat(0.0), prompts.tolist(), outputs.tolist()))
    trace = clip(Trace(unplaced), max_prompt_tokens, max_output_tokens)
    times = arrivals(arrival_rng, num_requests, rate)
    if not np.isfinite(times).all():
        raise ValueError(f"the arrival process gives times that are not finite at rate={rate}: check its keys")
    if rate is not None:
        times = at_rate(times, rate)
    check_span(float(times[-1]), f"rate={rate}: {num_requests} requests at this rate")
    requests = [
        replace(request, arrival_time=time) for request, time in zip(trace.requests, times.tolist(), strict=True)
    ]
    trace = replace(trace, requests=requests)
    return trace if adapters is None else assign_adapters(trace, adapters, adapter_rng)


def at_rate(times: Times, rate: float) -> Times:
    """The same arrivals on another scale: the mean of the gaps becomes 1 / `rate` (s)."""
    span = float(times[-1] - times[0])
    return times * ((len(times) - 1) / (rate * span)) if span > 0 else times
