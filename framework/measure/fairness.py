"""Requests → a table per adapter, and how evenly the adapters were served. Times in seconds.

Jain's index is over each adapter's mean normalized latency, which is per token: long requests count as short ones.
"""

from typing import Any

import numpy as np
import pandas as pd

BASE = "none"  # the row of the requests that name no adapter
DEFINITIONS = {
    "Jain's index": "(Σx)² / (n·Σx²) over the n adapters' mean normalized latencies x: 1 where all are equal, "
    "1/n where one has it all (Jain, Chiu and Hawe, 1984)",
    "Max ÷ min": "of the adapters' mean normalized latencies; an adapter with few requests has a noisy mean",
    "Load wait": "what the steps of a request waited for its adapter to come to the device",
}


def adapter_table(requests: pd.DataFrame) -> pd.DataFrame:
    """One row per adapter that `requests` name, the most requested first; `num_tokens`: of what was served of them."""
    named = requests.assign(
        adapter_id=requests["adapter_id"].fillna(BASE),
        num_tokens=(requests["num_prompt_tokens"] + requests["num_output_tokens"]).where(requests["ttft"].notna(), 0),
        is_refused=requests["refused"].notna(),
    )
    table = named.groupby("adapter_id", sort=False).agg(
        num_requests=("request_id", "size"),
        num_refused=("is_refused", "sum"),
        num_tokens=("num_tokens", "sum"),
        ttft_mean=("ttft", "mean"),
        ttft_p99=("ttft", lambda values: values.quantile(0.99)),
        normalized_latency_mean=("normalized_latency", "mean"),
        load_wait_mean=("adapter_load_wait", "mean"),
    )
    return table.sort_values("num_requests", ascending=False, kind="stable").reset_index()


def fairness(adapters: pd.DataFrame) -> dict[str, Any]:
    """Of one point's `adapter_table`: Jain's index and max ÷ min of the served adapters' mean normalized latencies."""
    served = adapters[adapters["num_requests"] > adapters["num_refused"]]
    latencies = served["normalized_latency_mean"]
    waits = np.average(served["load_wait_mean"], weights=served["num_requests"] - served["num_refused"])
    return {
        "num_adapters": len(served),
        "jain_index": float(latencies.sum() ** 2 / (len(latencies) * (latencies**2).sum())),
        "max_min_ratio": float(latencies.max() / latencies.min()),
        "load_wait_mean": float(waits),
    }
