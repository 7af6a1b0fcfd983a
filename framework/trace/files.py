"""Readers of trace files: Azure, Mooncake, BurstGPT, Vidur and the project's own table; each is path → Trace.

Others have files of their own: bailian.py, json_lines.py and conversations.py.

A reader refuses what it cannot use (see columns.py), counts in `Trace.dropped` rows that are no requests, and names in
`Trace.unread` columns that it does not know.
"""

from collections.abc import Iterable
from dataclasses import fields
from itertools import count, repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np

from framework.checks import whole
from framework.core import PREFIX_BLOCK_SIZE, Request, Trace
from framework.trace.columns import (
    Table,
    clock_times,
    labels,
    load_csv,
    load_json_lines,
    load_parquet,
    prefix_ids,
    seconds_or_none,
    timestamps,
    unread,
    whole_numbers,
)
from framework.trace.sessions import check_think_times, read_turns, turn_numbers

TimeUnit = Literal["s", "ms"]
UNITS_PER_SECOND = {"s": 1, "ms": 1000}  # how many of the unit make a second
LOGGED = ("Elapsed time", "Model", "Total tokens", "Log Type")  # by BurstGPT: what a request was, not what it asks for
REQUIRED = ("arrival_time", "num_prompt_tokens", "num_output_tokens")  # columns of the project's own table
OPTIONAL = (
    "adapter_id", "priority", "session_id", "prefix_ids", "turn", "think_time", "client_id", "num_predicted_tokens"
)  # fmt: skip


def read_azure(path: str | Path, num_rows: int | None = None) -> Trace:
    """Azure LLM inference trace 2023 or 2024; arrival times count from the first row.

    `num_rows` reads only the file's first rows (the 2024 files hold a week, up to 27 million rows).
    Source: Patel et al., "Splitwise", ISCA 2024; Stojkovic et al., "DynamoLLM", HPCA 2025.
    """
    columns = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    table = load_csv(Path(path), columns, text=("TIMESTAMP",), num_rows=num_rows)
    requests = as_requests(
        arrival_time=clock_times(table, "TIMESTAMP"),
        num_prompt_tokens=whole_numbers(table, "ContextTokens"),
        num_output_tokens=whole_numbers(table, "GeneratedTokens"),
    )
    return Trace(requests, unread=unread(table, columns))


def read_mooncake(path: str | Path, block_size: int = PREFIX_BLOCK_SIZE, time_unit: TimeUnit = "ms") -> Trace:
    """Mooncake trace (JSON lines); `timestamp` is in `time_unit`.

    `hash_ids`, where the file has them, become `prefix_ids`, one per `block_size` prompt tokens.
    Source: Qin et al., "Mooncake", FAST 2025.
    """
    whole("block_size", block_size)
    units = units_per_second(time_unit)
    table = load_json_lines(Path(path), ("timestamp", "input_length", "output_length"), optional=("hash_ids",))
    prompts = whole_numbers(table, "input_length")
    columns: dict[str, Iterable[Any]] = {
        "arrival_time": timestamps(table, "timestamp", units),
        "num_prompt_tokens": prompts,
        "num_output_tokens": whole_numbers(table, "output_length"),
    }
    if "hash_ids" in table.frame:
        columns["prefix_ids"] = prefix_ids(table, "hash_ids", prompts, block_size, must_cover=True)
    return Trace(as_requests(**columns, prefix_block_size=repeat(block_size)), unread=table.unread)


def units_per_second(time_unit: TimeUnit) -> int:
    if time_unit not in UNITS_PER_SECOND:
        raise ValueError(f"time_unit={time_unit!r} is not one of {', '.join(UNITS_PER_SECOND)}")
    return UNITS_PER_SECOND[time_unit]


def read_burstgpt(path: str | Path, num_rows: int | None = None) -> Trace:
    """BurstGPT 1.1 or 2.0 (which adds `Session ID`); arrival times are those of the file's clock, in seconds.

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
    session_ids = labels(table, "Session ID") if "Session ID" in table.frame else [None] * int(kept.sum())
    requests = as_requests(
        arrival_time=times[kept],
        num_prompt_tokens=whole_numbers(table, "Request tokens"),
        num_output_tokens=outputs[kept],
        session_id=session_ids,
        turn=turn_numbers(session_ids),
    )
    num_failed = len(kept) - len(requests)
    dropped = {"failed": num_failed} if num_failed else {}
    return Trace(requests, dropped, unread(table, (*columns, *LOGGED, "Session ID")))


def read_vidur(path: str | Path) -> Trace:
    """Vidur's processed trace: `arrived_at` (s), `num_prefill_tokens`, `num_decode_tokens`.

    Source: Agrawal et al., "Vidur", MLSys 2024.
    """
    columns = ("arrived_at", "num_prefill_tokens", "num_decode_tokens")
    table = load_csv(Path(path), columns)
    requests = as_requests(
        arrival_time=timestamps(table, "arrived_at"),
        num_prompt_tokens=whole_numbers(table, "num_prefill_tokens"),
        num_output_tokens=whole_numbers(table, "num_decode_tokens"),
    )
    return Trace(requests, unread=unread(table, columns))


def read_table(path: str | Path) -> Trace:
    """The project's own format, CSV or Parquet by suffix.

    Columns `arrival_time` (s), `num_prompt_tokens`, `num_output_tokens`; optional `adapter_id`, `priority`,
    `session_id`, `turn`, `think_time` (s), `client_id`, `num_predicted_tokens` and `prefix_ids` (CSV: ids with spaces
    between; Parquet: lists). An unknown column is an error, so that a misspelt optional one is not lost. So are turns
    that make no session: see sessions.py.
    """
    table = _load_table(Path(path))
    unknown = [column for column in table.frame.columns if column not in REQUIRED + OPTIONAL]
    if unknown:
        raise ValueError(f"{path}: unknown columns {unknown}; allowed are {[*REQUIRED, *OPTIONAL]}")
    return Trace(from_columns(table, {str(column): str(column) for column in table.frame.columns}))


def read_lengths(path: str | Path) -> Trace:
    """Lengths alone, of a CSV with or without times: every request arrives at 0 s.

    The columns are this project's `num_prompt_tokens` and `num_output_tokens`, or Vidur's `num_prefill_tokens` and
    `num_decode_tokens`; other columns are not read.
    """
    table = load_csv(Path(path), ())
    ours, theirs = REQUIRED[1:], ("num_prefill_tokens", "num_decode_tokens")
    names = next((pair for pair in (ours, theirs) if {*pair} <= {*table.frame.columns}), None)
    if names is None:
        found = [str(column) for column in table.frame.columns]
        raise ValueError(f"{path}: no columns {' and '.join(ours)}, nor {' and '.join(theirs)}; found {found}")
    prompts, outputs = (whole_numbers(table, name) for name in names)
    return Trace(as_requests(arrival_time=repeat(0.0), num_prompt_tokens=prompts, num_output_tokens=outputs))


def from_columns(
    table: Table, names: dict[str, str], units_per_second: int = 1, block_size: int = PREFIX_BLOCK_SIZE
) -> list[Request]:
    """The requests of a table; `names` maps fields of Request, as in OPTIONAL and all of REQUIRED, to its columns.

    So many units of its times make a second. A prefix id stands for `block_size` tokens.
    """
    prompts = whole_numbers(table, names["num_prompt_tokens"])
    outputs = whole_numbers(table, names["num_output_tokens"])
    columns: dict[str, Iterable[Any]] = {
        "arrival_time": timestamps(table, names["arrival_time"], units_per_second),
        "num_prompt_tokens": prompts,
        "num_output_tokens": outputs,
        "prefix_block_size": repeat(block_size),
    }
    for field in {"adapter_id", "session_id", "client_id"}.intersection(names):
        columns[field] = labels(table, names[field])
    if "num_predicted_tokens" in names:
        columns["num_predicted_tokens"] = whole_numbers(table, names["num_predicted_tokens"])
    if "priority" in names:
        columns["priority"] = whole_numbers(table, names["priority"], at_least=-(2**31))
    if "prefix_ids" in names:
        columns["prefix_ids"] = prefix_ids(table, names["prefix_ids"], prompts, block_size)
    given = [field for field in ("turn", "think_time") if field in names]
    if given and "session_id" not in names:
        raise ValueError(f"{table.path}: a column {names[given[0]]}, and no session_id that says whose")
    if "session_id" in names:
        session_ids = list(columns["session_id"])
        turns = read_turns(table, session_ids, names["turn"]) if "turn" in names else turn_numbers(session_ids)
        columns["turn"] = turns
        if "think_time" in names:
            think_times = seconds_or_none(table, names["think_time"], units_per_second)
            check_think_times(table, names, session_ids, turns, think_times, zip(prompts, outputs, strict=True))
            columns["think_time"] = think_times
    return as_requests(**columns)


def _load_table(path: Path) -> Table:
    if path.name.endswith((".csv", ".csv.gz")):
        return load_csv(path, REQUIRED, text=("adapter_id", "session_id", "prefix_ids", "client_id"))
    if path.suffix == ".parquet":
        return load_parquet(path, REQUIRED)
    raise ValueError(f"{path}: suffix {path.suffix!r} is not one of '.csv', '.csv.gz', '.parquet'")


def as_requests(**columns: Iterable[Any]) -> list[Request]:
    """Requests numbered from 0, one per row of the columns, which are named like the fields of Request."""
    values = [columns.get(field.name, repeat(field.default)) for field in fields(Request)[1:]]
    plain = [column.tolist() if isinstance(column, np.ndarray) else column for column in values]  # Python's own numbers
    return list(map(Request, count(), *plain))
