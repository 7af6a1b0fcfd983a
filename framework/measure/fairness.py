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
    """One row per adapter that `requests` name, the most requested first; `num_tokens`: of prompts and outputs."""
    named = requests.assign(
        adapter_id=requests["adapter_id"].fillna(BASE),
        num_tokens=requests["num_prompt_tokens"] + requests["num_output_tokens"],
    )
    table = named.groupby("adapter_id", sort=False).agg(
        num_requests=("request_id", "size"),
        num_tokens=("num_tokens", "sum"),
        ttft_mean=("ttft", "mean"),
        ttft_p99=("ttft", lambda values: values.quantile(0.99)),
        normalized_latency_mean=("normalized_latency", "mean"),
        load_wait_mean=("adapter_load_wait", "mean"),
    )
    return table.sort_values("num_requests", ascending=False, kind="stable").reset_index()


def fairness(adapters: pd.DataFrame) -> dict[str, Any]:
    """Of one point's `adapter_table`: Jain's index and max ÷ min of the adapters' mean normalized latencies."""
    latencies = adapters["normalized_latency_mean"]
    waits = np.average(adapters["load_wait_mean"], weights=adapters["num_requests"])
    return {
        "num_adapters": len(adapters),
        "jain_index": float(latencies.sum() ** 2 / (len(latencies) * (latencies**2).sum())),
        "max_min_ratio": float(latencies.max() / latencies.min()),
        "load_wait_mean": float(waits),
    }
