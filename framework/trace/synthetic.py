"""A synthetic trace: arrivals, request lengths, adapters and clients, drawn from independent streams of one seed.

All but the arrivals do not depend on the rate: every rate of a study replays the same requests.
"""

from collections.abc import Callable
from itertools import repeat

import numpy as np

from framework.checks import whole
from framework.core import Request, Trace
from framework.trace.arrivals import Arrivals, arrive_by
from framework.trace.clients import assign_clients
from framework.trace.lengths import Lengths
from framework.trace.popularity import Law, assign_adapters
from framework.trace.predictions import Predictor, predict
from framework.trace.transforms import clip, limit


def synthetic(
    *,
    arrivals: Arrivals,
    lengths: Callable[[np.random.Generator, int], tuple[Lengths, Lengths]],
    num_requests: int,
    max_prompt_tokens: int | None = None,
    max_output_tokens: int | None = None,
    adapters: Law | None = None,
    clients: Law | None = None,
    predictions: Predictor | None = None,
    max_concurrency: int | None = None,
    rate: float | None = None,
    seed: int = 0,
) -> Trace:
    """`num_requests` requests that arrive at `rate` requests/s; same seed, same trace.

    `arrivals` is one of arrivals.py, `lengths` one of lengths.py; longer lengths are clipped to the two limits.
    `adapters` and `clients` are laws of popularity.py, `predictions` is one of predictions.py (None: none). With
    `max_concurrency` at most so many are in progress; without a rate, each is then sent as soon as there is room.
    """
    whole("num_requests", num_requests)
    arrival_rng, length_rng, adapter_rng, client_rng, prediction_rng = np.random.default_rng(seed).spawn(5)
    prompts, outputs = lengths(length_rng, num_requests)
    unplaced = list(map(Request, range(num_requests), repeat(0.0), prompts.tolist(), outputs.tolist()))
    trace = clip(Trace(unplaced), max_prompt_tokens, max_output_tokens)
    if rate is not None or max_concurrency is None:
        trace = arrive_by(trace, arrivals, arrival_rng, rate)
    trace = limit(trace, max_concurrency)
    trace = trace if adapters is None else assign_adapters(trace, adapters, adapter_rng)
    return predict(assign_clients(trace, clients, client_rng), predictions, prediction_rng)
