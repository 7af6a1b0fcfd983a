"""A synthetic trace: an arrival process and request lengths, drawn from two independent streams of one seed.

The lengths do not depend on the rate: every rate of a study replays the same requests.
"""

from collections.abc import Callable

import numpy as np

from framework.core import Request, Trace
from framework.trace.arrivals import Times
from framework.trace.checks import whole
from framework.trace.lengths import Lengths
from framework.trace.transforms import clip


def synthetic(
    *,
    arrivals: Callable[[np.random.Generator, int, float | None], Times],
    lengths: Callable[[np.random.Generator, int], tuple[Lengths, Lengths]],
    num_requests: int,
    max_prompt_tokens: int | None = None,
    max_output_tokens: int | None = None,
    rate: float | None = None,
    seed: int = 0,
) -> Trace:
    """`num_requests` requests that arrive at `rate` requests/s on average; same seed, same trace.

    `arrivals` is one of arrivals.py, `lengths` one of lengths.py; longer lengths are clipped to the two limits.
    """
    whole("num_requests", num_requests)
    arrival_rng, length_rng = np.random.default_rng(seed).spawn(2)
    times = arrivals(arrival_rng, num_requests, rate)
    prompts, outputs = lengths(length_rng, num_requests)
    requests = list(map(Request, range(num_requests), times.tolist(), prompts.tolist(), outputs.tolist()))
    return clip(Trace(requests), max_prompt_tokens, max_output_tokens)
