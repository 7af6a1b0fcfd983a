"""What a replay leaves, as the tables that Parquet keeps: `requests.parquet` and `steps.parquet`.

A point depends on this file: what it writes is not computed again when a metric changes.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from framework.core import Sequence, Step
from framework.step_runs import StepRun, columns_of


def request_table(sequences: Iterable[Sequence], refused: Mapping[int, str] | None = None) -> pd.DataFrame:
    """One row per request: the trace's facts, its timestamps (s) and the latencies (s) that follow from them.

    `refused` maps the ids of requests that could not be served to the reason; these have no times.
    """
    reasons = refused or {}
    rows = [
        {
            "request_id": sequence.request.request_id,
            "adapter_id": sequence.request.adapter_id,
            "session_id": sequence.request.session_id,
            "turn": sequence.request.turn,
            "think_time": sequence.request.think_time,
            "priority": sequence.request.priority,
            "client_id": sequence.request.client_id,
            "num_predicted_tokens": sequence.request.num_predicted_tokens,
            "refused": reasons.get(sequence.request.request_id),
            "server": sequence.server,
            "prefill_server": sequence.prefill_server,
            "num_moves": sequence.num_moves,
            "transfer_wait": sequence.transfer_wait if sequence.num_moves else np.nan,
            "transfer_time": sequence.transfer_time if sequence.num_moves else np.nan,
            "arrival_time": sequence.arrival_time,
            "num_prompt_tokens": sequence.request.num_prompt_tokens,
            "num_output_tokens": len(sequence.output_token_ids),
            "num_cached_tokens": sequence.num_cached_tokens,
            "scheduled_time": sequence.scheduled_time,
            "first_token_time": sequence.token_times[0] if sequence.token_times else np.nan,
            "finish_time": sequence.token_times[-1] if sequence.is_finished else np.nan,
            "num_preemptions": sequence.num_preemptions,
            "num_swaps": sequence.num_swaps,
            "adapter_load_wait": np.nan if sequence.request.request_id in reasons else sequence.adapter_load_wait,
            "token_times": np.asarray(sequence.token_times),
            "token_ids": np.asarray(sequence.output_token_ids, dtype=np.int32),
        }
        for sequence in sequences
    ]
    columns = {"scheduled_time": float, "think_time": float, "num_predicted_tokens": "Int64"}
    columns |= {"server": "Int64", "prefill_server": "Int64"}
    table = pd.DataFrame(rows).astype(columns)
    table["ttft"] = table["first_token_time"] - table["arrival_time"]
    table["e2e"] = table["finish_time"] - table["arrival_time"]
    later_tokens = (table["num_output_tokens"] - 1).where(table["num_output_tokens"] > 1)
    table["tpot"] = (table["finish_time"] - table["first_token_time"]) / later_tokens
    table["normalized_latency"] = table["e2e"] / table["num_output_tokens"]
    return table


def step_table(steps: Iterable[Step | StepRun]) -> pd.DataFrame:
    """One row per step, with the fields of `Step`."""
    return pd.DataFrame(columns_of(list(steps)))
