"""Service of each client over time, and how even it is. Times in seconds.

Service is what a client was given, in tokens: of the prompts whose first token came, and twice the output tokens, as
VTC counts it (OSDI 2024).
"""

from itertools import pairwise

import numpy as np
import pandas as pd

NUM_WINDOWS = 20  # equal parts of a run
PROMPT, OUTPUT = 1.0, 2.0  # what a token counts


def service_over_time(requests: pd.DataFrame, start: float, end: float) -> pd.DataFrame:
    """One row per part of the time from `start` to `end`, with its end as index, and one column per client.

    NaN where a client had nothing to serve in that part. Requests without a client_id are no client's.
    """
    edges = np.linspace(start, end, NUM_WINDOWS + 1)
    columns = {}
    for client, own in requests[requests["client_id"].notna()].groupby("client_id"):
        tokens = np.histogram(np.concatenate(list(own["token_times"])), edges)[0]
        came = own["first_token_time"].notna()
        prompts = np.histogram(own["first_token_time"][came], edges, weights=own["num_prompt_tokens"][came])[0]
        last = own["finish_time"].fillna(own["arrival_time"])
        is_there = [bool(((own["arrival_time"] < b) & (last > a)).any()) for a, b in pairwise(edges)]
        columns[str(client)] = np.where(is_there, PROMPT * prompts + OUTPUT * tokens, np.nan)
    return pd.DataFrame(columns, index=edges[1:])


def jain_over_time(service: pd.DataFrame) -> "pd.Series[float]":
    """(Σx)² / (n·Σx²) over the n clients that had something to serve; NaN where these are fewer than two."""
    num = service.notna().sum(axis=1)
    squares = (service**2).sum(axis=1)
    index = service.sum(axis=1) ** 2 / (num * squares)
    return index.where((num >= 2) & (squares > 0))
