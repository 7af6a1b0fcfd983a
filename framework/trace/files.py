"""Readers of trace files: Azure, Mooncake, BurstGPT, Vidur and the project's own table; each is path → Trace.

A reader refuses what it cannot use (see columns.py) and counts in `Trace.dropped` what it leaves out.
"""

from collections.abc import Iterable
from itertools import count, repeat
from pathlib import Path
from typing import Any

import numpy as np

from framework.core import Request, Trace
from framework.trace.columns import (
    Table,
    clock_times,
    labels,
    load_csv,
    load_json_lines,
    load_parquet,
    prefix_ids,
    timestamps,
    whole_numbers,
)

REQUIRED = ("arrival_time", "num_prompt_tokens", "num_output_tokens")
OPTIONAL = ("adapter_id", "priority", "session_id", "prefix_ids")


def read_azure(path: str | Path, num_rows: int | None = None) -> Trace:
    """Azure LLM inference trace 2023 or 2024; arrival times count from the first row.

    `num_rows` reads only the file's first rows (the 2024 files hold a week, up to 27 million rows).
    Source: Patel et al., "Splitwise", ISCA 2024; Stojkovic et al., "DynamoLLM", HPCA 2025.
    """
    columns = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    table = load_csv(Path(path), columns, text=("TIMESTAMP",), num_rows=num_rows)
    requests = _requests(
        arrival_time=clock_times(table, "TIMESTAMP"),
        num_prompt_tokens=whole_numbers(table, "ContextTokens"),
        num_output_tokens=whole_numbers(table, "GeneratedTokens"),
    )
    return Trace(requests)


def read_mooncake(path: str | Path) -> Trace:
    """Mooncake trace (JSON lines, `timestamp` in ms); `hash_ids` become `prefix_ids`, one per 512 prompt tokens.

    Source: Qin et al., "Mooncake", FAST 2025.
    """
    table = load_json_lines(Path(path), ("timestamp", "input_length", "output_length", "hash_ids"))
    prompts = whole_numbers(table, "input_length")
    requests = _requests(
        arrival_time=timestamps(table, "timestamp") / 1000,  # ms → s
        num_prompt_tokens=prompts,
        num_output_tokens=whole_numbers(table, "output_length"),
        prefix_ids=prefix_ids(table, "hash_ids", prompts),
    )
    return Trace(requests)


def read_burstgpt(path: str | Path, num_rows: int | None = None) -> Trace:
    """BurstGPT 1.1 or 2.0 (which adds `Session ID`); arrival times count from the first row.

    Rows with 0 response tokens are failed requests: left out and counted as "failed". `num_rows` reads only the file's
    first rows. Source: Wang et al., "BurstGPT", KDD 2025.
    """
    columns = ("Timestamp", "Request tokens", "Response tokens")
    table = load_csv(Path(path), columns, text=("Session ID",), num_rows=num_rows)
    times = timestamps(table, "Timestamp")
    outputs = whole_numbers(table, "Response tokens", at_least=0)
    kept = outputs > 0
    if not kept.any():
        raise ValueError(f"{path}: all {len(kept)} requests failed (0 response tokens)")
    table = Table(table.path, table.frame[kept], table.first_line)
    requests = _requests(
        arrival_time=times[kept] - times[0],
        num_prompt_tokens=whole_numbers(table, "Request tokens"),
        num_output_tokens=outputs[kept],
        session_id=labels(table, "Session ID") if "Session ID" in table.frame else repeat(None),
    )
    num_failed = len(kept) - len(requests)
    return Trace(requests, {"failed": num_failed} if num_failed else {})


def read_vidur(path: str | Path) -> Trace:
    """Vidur's processed trace: `arrived_at` (s), `num_prefill_tokens`, `num_decode_tokens`.

    Source: Agrawal et al., "Vidur", MLSys 2024.
    """
    table = load_csv(Path(path), ("arrived_at", "num_prefill_tokens", "num_decode_tokens"))
    requests = _requests(
        arrival_time=timestamps(table, "arrived_at"),
        num_prompt_tokens=whole_numbers(table, "num_prefill_tokens"),
        num_output_tokens=whole_numbers(table, "num_decode_tokens"),
    )
    return Trace(requests)


def read_table(path: str | Path) -> Trace:
    """The project's own format, CSV or Parquet by suffix.

    Columns `arrival_time` (s), `num_prompt_tokens`, `num_output_tokens`; optional `adapter_id`, `priority`,
    `session_id` and `prefix_ids` (CSV: ids with spaces between; Parquet: lists). An unknown column is an error, so that
    a misspelt optional one is not lost.
    """
    table = _load_table(Path(path))
    unknown = [column for column in table.frame.columns if column not in REQUIRED + OPTIONAL]
    if unknown:
        raise ValueError(f"{path}: unknown columns {unknown}; allowed are {[*REQUIRED, *OPTIONAL]}")
    prompts = whole_numbers(table, "num_prompt_tokens")
    columns: dict[str, Iterable[Any]] = {
        "arrival_time": timestamps(table, "arrival_time"),
        "num_prompt_tokens": prompts,
        "num_output_tokens": whole_numbers(table, "num_output_tokens"),
    }
    for column in {"adapter_id", "session_id"}.intersection(table.frame.columns):
        columns[column] = labels(table, column)
    if "priority" in table.frame:
        columns["priority"] = whole_numbers(table, "priority", at_least=-(2**31))
    if "prefix_ids" in table.frame:
        columns["prefix_ids"] = prefix_ids(table, "prefix_ids", prompts)
    return Trace(_requests(**columns))


def _load_table(path: Path) -> Table:
    if path.suffix == ".csv":
        return load_csv(path, REQUIRED, text=("adapter_id", "session_id", "prefix_ids"))
    if path.suffix == ".parquet":
        return load_parquet(path, REQUIRED)
    raise ValueError(f"{path}: suffix {path.suffix!r} is not one of '.csv', '.parquet'")


def _requests(**columns: Iterable[Any]) -> list[Request]:
    """Requests numbered from 0, one per row of the columns, which are named like the fields of Request."""
    absent: dict[str, Iterable[Any]] = {
        "adapter_id": repeat(None),
        "priority": repeat(0),
        "session_id": repeat(None),
        "prefix_ids": repeat(()),
    }
    fields = [(absent | columns)[name] for name in REQUIRED + OPTIONAL]  # the order of Request's fields
    plain = [field.tolist() if isinstance(field, np.ndarray) else field for field in fields]  # Python's own numbers
    return list(map(Request, count(), *plain))
