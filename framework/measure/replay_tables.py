"""What a replay leaves, as the tables that Parquet keeps: `requests.parquet` and `steps.parquet`.

A point depends on this file: what it writes is not computed again when a metric changes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from framework.core import Sequence, Step
from framework.step_runs import FIELDS, StepLog, StepRun, columns_of, narrowed

OF_REQUEST = (
    "request_id", "adapter_id", "session_id", "turn", "think_time", "priority", "client_id", "num_predicted_tokens",
)  # fmt: skip
OF_SEQUENCE = (
    "server", "prefill_server", "num_moves", "transfer_wait", "transfer_time", "arrival_time", "num_cached_tokens",
    "scheduled_time", "num_preemptions", "num_swaps", "adapter_load_wait",
)  # fmt: skip
COLUMNS = (
    *OF_REQUEST, "refused", *OF_SEQUENCE[:6], "num_prompt_tokens", "num_output_tokens", *OF_SEQUENCE[6:8],
    "first_token_time", "finish_time", *OF_SEQUENCE[8:], "token_times", "token_ids",
)  # fmt: skip
TYPES = {
    "scheduled_time": float, "think_time": float, "num_predicted_tokens": "Int64", "server": "Int64",
    "prefill_server": "Int64",
}  # fmt: skip


def request_table(sequences: Iterable[Sequence], refused: Mapping[int, str] | None = None) -> pd.DataFrame:
    """One row per request: the trace's facts, its timestamps (s) and the latencies (s) that follow from them.

    `refused` maps the ids of requests that could not be served to the reason; these have no times.
    """
    reasons, served = refused or {}, list(sequences)
    requests = [sequence.request for sequence in served]
    times = [np.asarray(sequence.token_times, dtype=float) for sequence in served]
    is_refused = [request.request_id in reasons for request in requests]
    lacks_move = [not sequence.num_moves for sequence in served]
    columns = {name: [getattr(request, name) for request in requests] for name in OF_REQUEST}
    columns["refused"] = [reasons.get(request.request_id) for request in requests]
    columns |= {name: [getattr(sequence, name) for sequence in served] for name in OF_SEQUENCE}
    columns["transfer_wait"] = nan_where(lacks_move, columns["transfer_wait"])
    columns["transfer_time"] = nan_where(lacks_move, columns["transfer_time"])
    columns["num_prompt_tokens"] = [request.num_prompt_tokens for request in requests]
    columns["num_output_tokens"] = [len(sequence.output_token_ids) for sequence in served]
    columns["first_token_time"] = [own[0] if len(own) else np.nan for own in times]
    columns["finish_time"] = [own[-1] if one.is_finished else np.nan for own, one in zip(times, served, strict=True)]
    columns["adapter_load_wait"] = nan_where(is_refused, columns["adapter_load_wait"])
    columns["token_times"] = times
    answers = {id(sequence.output_token_ids): sequence.output_token_ids for sequence in served}
    arrays = {key: np.asarray(answer, dtype=np.int32) for key, answer in answers.items()}  # one of those that share it
    columns["token_ids"] = [arrays[id(sequence.output_token_ids)] for sequence in served]
    table = pd.DataFrame({name: columns[name] for name in COLUMNS}).astype(TYPES)
    table["ttft"] = table["first_token_time"] - table["arrival_time"]
    table["e2e"] = table["finish_time"] - table["arrival_time"]
    later_tokens = (table["num_output_tokens"] - 1).where(table["num_output_tokens"] > 1)
    table["tpot"] = (table["finish_time"] - table["first_token_time"]) / later_tokens
    table["normalized_latency"] = table["e2e"] / table["num_output_tokens"]
    return table


def nan_where(is_missing: list[bool], values: list[float]) -> list[float]:
    return [np.nan if missing else value for missing, value in zip(is_missing, values, strict=True)]


def step_table(steps: Iterable[Step | StepRun]) -> pd.DataFrame:
    """One row per step, with the fields of `Step`."""
    return pd.DataFrame(columns_of(list(steps)))


def table_of_logs(logs: Iterable[StepLog]) -> pd.DataFrame:
    """The same of several servers together, by the start of the steps; the logs are empty then.

    A large replay has more steps than anything else: each whole number has as few bytes as the column needs.
    """
    blocks = [block for log in logs for block in log.take_blocks()]
    starts = np.concatenate([block["start_time"] for block in blocks])
    order = None if (starts[1:] >= starts[:-1]).all() else np.argsort(starts, kind="stable")
    return pd.DataFrame({name: arranged([block.pop(name) for block in blocks], order) for name in FIELDS}, copy=False)


def arranged(parts: list[npt.NDArray[Any]], order: npt.NDArray[np.int64] | None) -> npt.NDArray[Any]:
    """The parts of a column one behind the other, in another order if there is one."""
    column = narrowed(np.concatenate(parts))
    return column if order is None or not column.strides[0] else column[order]
