"""Several servers: what each of them had to do, and how unevenly it was shared. Times in seconds.

Imbalance is the most of a server over the mean of all: 1 where all have as much, n where one of n has it all. It is the
1 + λ of Pearce et al. (ICS 2012), and what consistent hashing with bounded loads bounds (Mirrokni et al., SODA 2018).
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

NUM_TIMES = 1000  # at which the load over time is looked at, equally far apart
OF_REQUESTS = (  # columns that are read here
    "server", "arrival_time", "finish_time", "ttft", "num_prompt_tokens", "num_cached_tokens", "num_output_tokens",
)  # fmt: skip
OF_STEPS = ("server", "elapsed", "num_seqs")


def imbalance(loads: npt.ArrayLike) -> float:
    """Of one load per server; NaN for a single server, and where none has any."""
    values = np.asarray(loads, dtype=float)
    return float(values.max() / values.mean()) if len(values) > 1 and values.sum() > 0 else float("nan")


def server_table(requests: pd.DataFrame, steps: pd.DataFrame, num_servers: int) -> pd.DataFrame:
    """One row per server, which is the index: of these requests those that it took, and of these steps its own.

    `num_computed_tokens` are the prompts' tokens that were not cached, and the output tokens; `busy` is the time of its
    steps, and `mean_batch_size` weighted by it. A number of nothing is 0, but for latencies: these are NaN.
    """
    taken = requests[requests["server"].notna()]
    tokens = taken["num_prompt_tokens"] - taken["num_cached_tokens"] + taken["num_output_tokens"]
    by_server = taken.assign(num_computed_tokens=tokens).groupby(taken["server"].astype(int))
    columns = ["num_prompt_tokens", "num_cached_tokens", "num_output_tokens", "num_computed_tokens"]
    seats = (steps["num_seqs"] * steps["elapsed"]).groupby(steps["server"]).sum()
    busy = steps.groupby("server")["elapsed"].sum()
    table = pd.DataFrame(index=pd.RangeIndex(num_servers, name="server"))
    table["num_requests"] = by_server.size()
    table[columns] = by_server[columns].sum()
    table["busy"], table["mean_batch_size"] = busy, seats / busy
    table = table.fillna(0.0).astype(dict.fromkeys(["num_requests", *columns], int))
    for statistic, share in (("ttft_p50", 0.5), ("ttft_p99", 0.99)):
        table[statistic] = by_server["ttft"].quantile(share)
    return table


def load_over_time(requests: pd.DataFrame, num_servers: int, times: npt.NDArray[np.float64]) -> pd.DataFrame:
    """(times × servers) unfinished requests at each of `times`: from the arrival of each until its last token.

    What waits at a router counts at the server that takes it later.
    """
    loads = {}
    for server in range(num_servers):
        taken = requests[requests["server"] == server]
        came = np.sort(taken["arrival_time"].to_numpy())
        left = np.sort(taken["finish_time"].fillna(np.inf).to_numpy())
        loads[server] = came.searchsorted(times, side="right") - left.searchsorted(times, side="right")
    return pd.DataFrame(loads, index=times)


def imbalance_of_load(requests: pd.DataFrame, num_servers: int, start: float, end: float) -> float:
    """The most unfinished requests of a server over their mean, each as the mean over time; NaN for one server."""
    if num_servers == 1:
        return float("nan")
    loads = load_over_time(requests, num_servers, np.linspace(start, end, NUM_TIMES))
    mean = loads.mean(axis=None)
    return float(loads.max(axis=1).mean() / mean) if mean > 0 else float("nan")
