"""A synthetic trace of conversations: their starts, their turns, and how long users think between them.

Every part is drawn from a stream of its own of one seed. At every rate the same conversations are held.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from framework.checks import positive, whole
from framework.core import Request, Trace
from framework.trace.arrivals import Arrivals, arrive_by
from framework.trace.clients import assign_clients
from framework.trace.lengths import Lengths
from framework.trace.popularity import Law, assign_adapters
from framework.trace.predictions import Predictor, predict
from framework.trace.transforms import clip, limit

Seconds = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Lengths]


def multi_turn(
    *,
    arrivals: Arrivals,
    lengths: Callable[[np.random.Generator, int], tuple[Lengths, Lengths]],
    num_turns: Draw,
    think_times: Callable[[np.random.Generator, int], Seconds],
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
    """`num_requests` turns of sessions that start at `rate` per second; the last session may be cut short.

    `num_turns` and `think_times` (s) are laws (rng, n) → n values, such as `lengths.geometric` and `lognormal`.
    `lengths` are of a turn's new text and of its answer. Outputs are clipped to `max_output_tokens`. A session ends
    before a turn whose whole prompt is over `max_prompt_tokens`; such turns are counted in `dropped`. The rest is as in
    synthetic.py.
    """
    whole("num_requests", num_requests)
    arrival_rng, length_rng, turn_rng, think_rng, adapter_rng, *others = np.random.default_rng(seed).spawn(7)
    numbers = np.repeat(np.arange(num_requests), num_turns(turn_rng, num_requests))[:num_requests]
    new_texts, outputs = lengths(length_rng, num_requests)
    requests = converse(numbers, new_texts, outputs, think_times(think_rng, num_requests))
    trace = clip(Trace(requests), max_prompt_tokens, max_output_tokens)
    if rate is not None or max_concurrency is None:
        trace = arrive_by(trace, arrivals, arrival_rng, rate)
    trace = limit(trace, max_concurrency)
    trace = trace if adapters is None else assign_adapters(trace, adapters, adapter_rng)
    return predict(assign_clients(trace, clients, others[0]), predictions, others[1])


def converse(numbers: Lengths, new_texts: Lengths, outputs: Lengths, think_times: Seconds) -> list[Request]:
    """Requests at 0 s, one per row; rows of one session have the same of the `numbers` and stand together.

    A prompt is the conversation so far and the row's new text.
    """
    requests: list[Request] = []
    columns = (column.tolist() for column in (numbers, new_texts, outputs, think_times))
    for number, new_text, output, think_time in zip(*columns, strict=True):
        session = f"session-{number}"
        before = requests[-1] if requests and requests[-1].session_id == session else None
        if before is None:
            request = Request(len(requests), 0.0, new_text, output, session_id=session)
        else:
            num_prompt_tokens = before.num_prompt_tokens + before.num_output_tokens + new_text
            follows = {"session_id": session, "turn": before.turn + 1, "think_time": think_time}
            request = Request(len(requests), 0.0, num_prompt_tokens, output, **follows)
        requests.append(request)
    return requests


def lognormal(rng: np.random.Generator, num_requests: int, *, median: float, sigma: float) -> Seconds:
    """Lognormal think times (s); `sigma` is the standard deviation of their logarithm."""
    return rng.lognormal(np.log(positive("median", median)), positive("sigma", sigma), size=num_requests)
