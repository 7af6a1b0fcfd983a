"""The tables of a small replay that never was: drawn from a seed, with every case that a metric knows."""

from dataclasses import fields

import numpy as np
import pandas as pd

from framework.core import Step

SLO = {"ttft": 0.4, "tpot": 0.05}


def replayed_tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """`requests` and `steps` of 60 requests: some of one token, some preempted, the last unfinished.

    Every column of requests.parquet and steps.parquet is there; what is not drawn is 0, or None.
    """
    rng = np.random.default_rng(16)
    arrival_time = rng.exponential(0.05, size=60).cumsum()
    num_output_tokens = rng.integers(1, 12, size=60)
    scheduled_time = arrival_time + rng.exponential(0.1, size=60)
    token_times = [
        start + rng.exponential(0.06, size=num_tokens).cumsum()
        for start, num_tokens in zip(scheduled_time, num_output_tokens, strict=True)
    ]
    requests = pd.DataFrame(
        {
            "arrival_time": arrival_time,
            "refused": None,
            "num_prompt_tokens": rng.integers(4, 100, size=60),
            "num_output_tokens": num_output_tokens,
            "scheduled_time": scheduled_time,
            "first_token_time": [times[0] for times in token_times],
            "finish_time": [times[-1] for times in token_times[:-1]] + [np.nan],
            "num_preemptions": rng.integers(0, 2, size=60),
            "token_times": token_times,
        }
    )
    absent = {
        "adapter_id": None,
        "session_id": None,
        "priority": 0,
        "client_id": None,
        "adapter_load_wait": 0.0,
        "num_cached_tokens": 0,
        "num_swaps": 0,
        "server": 0,
    }
    requests = requests.assign(request_id=range(60), **absent)
    requests["ttft"] = requests["first_token_time"] - requests["arrival_time"]
    requests["e2e"] = requests["finish_time"] - requests["arrival_time"]
    later_tokens = (requests["num_output_tokens"] - 1).where(requests["num_output_tokens"] > 1)
    requests["tpot"] = (requests["finish_time"] - requests["first_token_time"]) / later_tokens
    requests["normalized_latency"] = requests["e2e"] / requests["num_output_tokens"]
    steps = pd.DataFrame({"start_time": np.arange(80) * 0.05, "elapsed": rng.uniform(0.01, 0.05, size=80)})
    steps["num_seqs"] = rng.integers(1, 8, size=80)
    return requests, steps.reindex(columns=[field.name for field in fields(Step)], fill_value=0)
