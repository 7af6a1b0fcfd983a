"""Raw tables of trace files, and checks that turn their columns into arrays.

A value that cannot be used is a ValueError naming file, row (from 1), line and column. The frame's index is the row's
place in the file (from 0) and stays so when rows are left out.
"""

import csv
import gzip
import json
import operator
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from framework.checks import cut, shown, whole
from framework.trace.transforms import MAX_TIME

MAX_FOUND = 400  # characters of a list of columns
MAX_DIGITS = 300
MAX_WHOLE = 2**53  # up to here float64 holds every whole number


@dataclass(frozen=True)
class Table:
    """The rows of a file as read; `first_line` is the line of row 1 (None: the format has no lines).

    `unread` are the names of values that the frame does not have.
    """

    path: Path
    frame: pd.DataFrame
    first_line: int | None
    unread: tuple[str, ...] = ()


def load_csv(path: Path, required: Sequence[str], text: Sequence[str] = (), num_rows: int | None = None) -> Table:
    """The CSV file's first `num_rows` rows (None: all); columns in `text` stay strings, whatever they look like."""
    try:
        content = without_blank_end(read_bytes(path).decode("utf-8-sig"))
        frame = pd.read_csv(
            StringIO(content),  # pandas takes a Ctrl-C while it reads a file for a broken one
            dtype=dict.fromkeys(text, str),
            na_filter=False,  # keeps the offending text for the message
            low_memory=False,
            skip_blank_lines=False,  # keeps row and line in step
            nrows=num_rows,
        )
        csv.field_size_limit(len(content) + 1)
        header, *rows = islice(csv.reader(StringIO(content)), 2)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OverflowError, csv.Error) as error:
        raise ValueError(f"{path}: not a readable CSV file: {str(error).strip()}") from error
    if rows and len(rows[0]) > len(header):  # pandas would take the first column for row names
        raise ValueError(f"{path}: row 1 (line 2) has more values than the header has columns")
    return _checked(Table(path, frame, first_line=2), required)


def load_parquet(path: Path, required: Sequence[str]) -> Table:
    """The whole Parquet file."""
    _require_file(path)
    try:
        frame = pd.read_parquet(path)
    except (ValueError, OSError) as error:  # pyarrow's errors derive from these
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error
    return _checked(Table(path, frame.reset_index(drop=True), first_line=None), required)


def load_json_lines(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """A file with one JSON object per line; keys that are neither `required` nor `optional` are unread.

    An optional key that no line has is no column; one that only some lines have is an error.
    """
    lines = read_bytes(path).rstrip().splitlines()
    rows = [_parse_line(path, number, line, required) for number, line in enumerate(lines, start=1)]
    columns = [*required, *(key for key in optional if any(key in row for row in rows))]
    for number, row in enumerate(rows, start=1):
        _require_keys(path, number, row, columns)
    unread = dict.fromkeys(cut(key) for row in rows for key in row if key not in columns)
    table = Table(path, pd.DataFrame(rows, columns=columns), first_line=1, unread=tuple(unread))
    return _checked(table, required)


def read_bytes(path: Path) -> bytes:
    """The whole file, unpacked if its name ends with .gz."""
    _require_file(path)
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a readable gzip file: {error}") from error


def without_blank_end(content: str) -> str:
    """The text without blank lines at its end: they are no rows."""
    end = content.find("\n", len(content.rstrip()))
    return content if end == -1 else content[: end + 1]


def unread(table: Table, known: Sequence[str]) -> tuple[str, ...]:
    """What the file has beside the `known` columns."""
    return *(cut(str(column)) for column in table.frame.columns if column not in known), *table.unread


def fault(table: Table, position: int, column: str, problem: str) -> ValueError:
    """The error to raise for what is at `position` (an offset into the frame) of `column`."""
    row = int(table.frame.index[position])
    line = "" if table.first_line is None else f" (line {row + table.first_line})"
    return ValueError(f"{table.path}: row {row + 1}{line}, column {shown(column)}: {problem}")


def timestamps(table: Table, column: str, units_per_second: int = 1) -> npt.NDArray[np.float64]:
    """A column of numbers that are finite, at least 0 and never fall, as seconds of the file's clock."""
    times = _numbers(table, column)
    _refuse(table, column, ~(np.isfinite(times) & (times >= 0)), "a finite number of at least 0")
    times = times / units_per_second
    _require_clock(table, column, times)
    return times


def seconds_or_none(table: Table, column: str, units_per_second: int = 1) -> list[float | None]:
    """A column of finite numbers of at least 0, as seconds; None where the file has nothing."""
    is_empty = _is_empty(table.frame[column])
    seconds = _numbers(table, column) / units_per_second
    is_good = (seconds >= 0) & (seconds <= MAX_TIME)
    _refuse(table, column, ~is_empty & ~is_good, f"a number from 0 to {MAX_TIME * units_per_second:.3g}, or empty")
    return [None if empty else second for empty, second in zip(is_empty, seconds.tolist(), strict=True)]


def clock_times(table: Table, column: str) -> npt.NDArray[np.float64]:
    """A column of dates with time of day (ISO 8601) as seconds from the first row's; they never fall."""
    dates = pd.to_datetime(table.frame[column], format="ISO8601", utc=True, errors="coerce")
    _refuse(table, column, dates.isna().to_numpy(), "a date and time such as 2023-11-16 18:17:03.9799600")
    times = np.asarray((dates - dates.iloc[0]).dt.total_seconds(), dtype=np.float64)
    _require_clock(table, column, times)
    return times


def whole_numbers(table: Table, column: str, at_least: int = 1) -> npt.NDArray[np.int64]:
    """A column of whole numbers (12.0 is one, 12.5 is not) of at least `at_least`."""
    numbers = _numbers(table, column)
    good = (numbers >= at_least) & (numbers <= MAX_WHOLE) & (numbers == np.floor(numbers))
    _refuse(table, column, ~good, f"a whole number of at least {at_least}")
    return numbers.astype(np.int64)


def labels(table: Table, column: str) -> list[str | None]:
    """A column of names; None where the file has nothing."""
    values = table.frame[column]
    return [None if empty else str(value) for value, empty in zip(values.tolist(), _is_empty(values), strict=True)]


def prefix_ids(
    table: Table, column: str, num_prompt_tokens: npt.NDArray[np.int64], block_size: int, must_cover: bool = False
) -> list[tuple[int, ...]]:
    """A column of block ids (a list, or text with spaces between), at most one per `block_size` prompt tokens.

    With `must_cover` there has to be one for every full block of the prompt.
    """
    whole("block_size", block_size)
    rows = [_parse_ids(table, column, position) for position in range(len(table.frame))]
    num_blocks = -(-num_prompt_tokens // block_size)
    for position, (ids, limit) in enumerate(zip(rows, num_blocks.tolist(), strict=True)):
        if len(ids) > limit:
            problem = f"{len(ids)} ids, but the prompt has only {limit} block(s) of {block_size} tokens"
            raise fault(table, position, column, problem)
        if must_cover and len(ids) < (num_full := int(num_prompt_tokens[position]) // block_size):
            problem = f"{len(ids)} ids do not cover the prompt, which has {num_full} full blocks of {block_size} tokens"
            raise fault(table, position, column, problem)
    return rows


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"no trace file at {path}: check the path")


def _checked(table: Table, required: Sequence[str]) -> Table:
    found = [str(column) for column in table.frame.columns]
    missing = [column for column in required if column not in found]
    if missing:
        raise ValueError(f"{table.path}: missing columns {missing}; found {shown(found, MAX_FOUND)}")
    if table.frame.empty:
        raise ValueError(f"{table.path}: the trace is empty (no rows)")
    return table


def _parse_line(path: Path, number: int, line: bytes, required: Sequence[str]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:  # not JSON, or not even text
        reason = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise ValueError(f"{path}: line {number} is not JSON: {reason}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}: line {number} is not a JSON object: {shown(str(row))}")
    _require_keys(path, number, row, required)
    return row


def _require_keys(path: Path, number: int, row: dict[str, Any], keys: Sequence[str]) -> None:
    missing = [key for key in keys if key not in row]
    if missing:
        raise ValueError(f"{path}: line {number}: missing columns {missing}; found {shown(sorted(row), MAX_FOUND)}")


def _parse_ids(table: Table, column: str, position: int) -> tuple[int, ...]:
    value = table.frame[column].iloc[position]
    if value is None:
        return ()
    try:
        ids = tuple(map(int, value.split())) if isinstance(value, str) else tuple(map(operator.index, value))
        if min(ids, default=0) < 0:
            raise ValueError
        return ids
    except (TypeError, ValueError):
        raise fault(table, position, column, f"{shown(str(value))} is not a list of whole numbers from 0") from None


def _is_empty(values: "pd.Series[Any]") -> npt.NDArray[np.bool_]:
    return (values.isna() | (values == "")).to_numpy()


def _numbers(table: Table, column: str) -> npt.NDArray[np.float64]:
    if table.frame[column].dtype.kind in "mMb":  # to_numeric would make numbers of times and truth values
        raise fault(table, 0, column, f"{shown(str(table.frame[column].iloc[0]))} is no plain number")
    values = table.frame[column]
    if values.dtype == object or isinstance(values.dtype, pd.StringDtype):
        values = values.mask(values.astype(str).str.len() > MAX_DIGITS)  # where to_numeric overflows: no number of ours
    return pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)


def _refuse(table: Table, column: str, refused: npt.NDArray[np.bool_], allowed: str) -> None:
    if refused.any():
        position = int(np.argmax(refused))
        value = str(table.frame[column].iloc[position])
        raise fault(table, position, column, f"{shown(value)} is not {allowed}")


def _require_clock(table: Table, column: str, times: npt.NDArray[np.float64]) -> None:
    """Of times (s): they never fall, and the clock can resolve a microsecond at each of them."""
    _refuse(table, column, times > MAX_TIME, f"at most {MAX_TIME:.3g} s: later, the clock resolves no microsecond")
    falls = np.diff(times) < 0
    if falls.any():
        position = int(np.argmax(falls)) + 1
        before, value = table.frame[column].iloc[position - 1], table.frame[column].iloc[position]
        falling = f"{shown(str(value))} is earlier than {shown(str(before))} in the row before"
        problem = f"{falling}; sort the rows by arrival time"
        raise fault(table, position, column, problem)
