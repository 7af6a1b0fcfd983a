"""Service of clients as VTC's authors count it (OSDI 2024): a prompt's token is worth 1, an output's 2.

In `spread` a request's service is even over the time from its first token to its last, as in their figures; in `apart`
it comes as VTC's counters have it: the prompt when its request is admitted, each token when it is there.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

PROMPT, OUTPUT = 1.0, 2.0
STEP = 0.03  # of the arrivals' time, between two points of the difference over time: the source's 18 s of 600
WINDOW, WARM_UP, NUM_WINDOWS = 0.1, 0.05, 19  # of the arrivals' time: the source's 60 s and 30 s of 600

Seconds = npt.NDArray[np.floating[Any]]


def cost(requests: pd.DataFrame) -> "pd.Series[float]":
    """Of each request, in tokens of a prompt."""
    return PROMPT * requests["num_prompt_tokens"] + OUTPUT * requests["num_output_tokens"]


def spread(requests: pd.DataFrame, starts: Seconds, ends: Seconds) -> pd.DataFrame:
    """Service of each client from each of `starts` to the one of `ends` (s): a row per span, a column per client.

    A request whose first token is its last has none, as in the source.
    """
    served = requests[requests["finish_time"] > requests["first_token_time"]]
    columns = {}
    for client, own in served.groupby("client_id"):
        first, last = own["first_token_time"].to_numpy(), own["finish_time"].to_numpy()
        overlap = np.minimum(ends[:, None], last) - np.maximum(starts[:, None], first)
        columns[client] = (np.maximum(overlap, 0.0) / (last - first)) @ cost(own).to_numpy()
    return pd.DataFrame(columns).reindex(columns=sorted(requests["client_id"].unique()), fill_value=0.0)


def differences(requests: pd.DataFrame, span: float) -> pd.DataFrame:
    """Largest less smallest service of the clients so far, over `time`, a share of the arrivals' `span` (s)."""
    shares = STEP * np.arange(1, round(1 / STEP) + 1)
    service = spread(requests, np.zeros(len(shares)), shares * span)
    return pd.DataFrame({"time": shares, "difference": service.max(axis=1) - service.min(axis=1)})


def unfairness(requests: pd.DataFrame, span: float) -> Seconds:
    """How unevenly clients are served (tokens/s), in each of 19 windows of a tenth of the arrivals' `span` (s).

    For each client the smaller of two gaps: to the client that is served most, and between what it asked for in the
    window and what it got; summed over the clients. It is what the authors' scripts compute for their Table 2.
    """
    middles = span * (WARM_UP + (1 - WARM_UP) / (NUM_WINDOWS + 1) * np.arange(1, NUM_WINDOWS + 1))
    starts, ends = middles - WINDOW / 2 * span, middles + WINDOW / 2 * span
    length = WINDOW * span
    got = spread(requests, starts, ends) / length
    asked = pd.DataFrame(index=got.index, columns=got.columns, data=0.0)
    for client, own in requests.groupby("client_id"):
        times = own["arrival_time"].to_numpy()
        is_inside = (times >= starts[:, None]) & (times <= ends[:, None])
        asked[client] = is_inside @ cost(own).to_numpy() / length
    to_most = got.rsub(got.max(axis=1), axis=0)
    to_asked = (asked - got).abs()
    return np.minimum(to_most, to_asked).sum(axis=1).to_numpy()


def apart(requests: pd.DataFrame, clients: Sequence[str]) -> float:
    """By how much the services of two clients come apart while both have requests waiting.

    The difference's largest value less its smallest, over the longest time in which both wait without a break.
    """
    times, values = service_events(requests, clients)
    start, end = longest_backlog(requests, clients)
    since = np.searchsorted(times, start, side="right")
    until = np.searchsorted(times, end, side="left")
    difference = np.concatenate([[0.0], np.cumsum(values)])[since : until + 1]
    return float(difference.max() - difference.min())


def service_events(requests: pd.DataFrame, clients: Sequence[str]) -> tuple[Seconds, Seconds]:
    """When either of two clients is served (s), and by how much the first is ahead by that.

    What both get at once is one event: the tokens of a step, then the prompts that are admitted.
    """
    parts = []
    for sign, client in zip((1.0, -1.0), clients, strict=True):
        own = requests[requests["client_id"] == client]
        tokens, prompts = np.concatenate(list(own["token_times"])), own["num_prompt_tokens"]
        parts.append(pd.DataFrame({"time": tokens, "is_prompt": False, "value": sign * OUTPUT}))
        parts.append(pd.DataFrame({"time": own["scheduled_time"], "is_prompt": True, "value": sign * PROMPT * prompts}))
    events = pd.concat(parts).groupby(["time", "is_prompt"])["value"].sum()
    return events.index.get_level_values("time").to_numpy(), events.to_numpy()


def longest_backlog(requests: pd.DataFrame, clients: Sequence[str]) -> tuple[float, float]:
    """The longest time in which each of the clients has a request waiting (s); ValueError if there is none."""
    changes = []
    for client in clients:
        own = requests[requests["client_id"] == client]
        waiting = np.concatenate([own["arrival_time"], own["scheduled_time"]])
        steps = np.repeat([1, -1], len(own))
        order = np.lexsort((-steps, waiting))
        number = np.cumsum(steps[order])
        begins = np.flatnonzero((number > 0) & (np.concatenate([[0], number[:-1]]) == 0))
        stops = np.flatnonzero((number == 0) & (np.concatenate([[0], number[:-1]]) > 0))
        changes.append([(waiting[order][a], waiting[order][b]) for a, b in zip(begins, stops, strict=True)])
    both = [(max(a, c), min(b, d)) for a, b in changes[0] for c, d in changes[1]]
    start, end = max(both, key=lambda span: span[1] - span[0], default=(0.0, 0.0))
    if not end > start:
        raise ValueError(f"{' and '.join(clients)} never have requests waiting at the same time: raise the rate")
    return start, end
