"""Parquet files of tables that are large: they are written, and read, some rows after the other."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from framework.study.files import DISK_FULL

ROWS = 20_000  # that are written together


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """ROWS rows after the other: lists of tokens are copied to write them. OSError says what a full disk lacks."""
    with telling_size(path, lambda: path.stat().st_size), path.open("wb") as file:
        write_whole(file, table)


def write_whole(file: IO[bytes], table: pd.DataFrame) -> None:
    with parquet_writer(file, schema_of(table)) as writer:
        for first in range(0, max(len(table), 1), ROWS):
            write_rows(writer, table[first : first + ROWS])


def parquet_writer(file: IO[bytes], schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(file, schema, compression="zstd")


def write_rows(writer: pq.ParquetWriter, rows: pd.DataFrame) -> None:
    rows = rows.astype(dict.fromkeys(narrow_columns(rows), np.int64))
    writer.write_table(pa.Table.from_pandas(rows, writer.schema, preserve_index=False))


def copy_file(file: IO[bytes], path: Path) -> None:
    """All that is in the file; OSError as `write_parquet`."""
    file.seek(0)
    with telling_size(path, lambda: path.stat().st_size), path.open("wb") as copy:
        shutil.copyfileobj(file, copy)


@contextmanager
def telling_size(path: Path, size: Callable[[], int]) -> Iterator[None]:
    """A full disk's OSError says how many bytes of what goes to `path` were written."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OSError(error.errno, f"{error.strerror}: {path} needs more than {size():,} bytes") from error
        raise


def narrow_columns(table: pd.DataFrame) -> list[str]:
    """Whole numbers that are kept in fewer bytes than a file has them in."""
    return [name for name, dtype in table.dtypes.items() if isinstance(dtype, np.dtype) and dtype.kind == "u"]


def schema_of(table: pd.DataFrame) -> pa.Schema:
    """Of the whole table, from which pandas makes it again; lists have the type of the first one."""
    columns = {name: table[name] for name in table.columns}
    for name, column in columns.items():
        if len(table) and isinstance(column.iloc[0], np.ndarray):
            columns[name] = [column.iloc[0][:0]] * len(table)
    columns |= dict.fromkeys(narrow_columns(table), np.broadcast_to(np.int64(0), len(table)))
    return pa.Schema.from_pandas(pd.DataFrame(columns, copy=False))


def read_rows(file: Path | IO[bytes]) -> pd.DataFrame:
    """The table without the tokens themselves, of which metrics need the times only."""
    found = pq.ParquetFile(file)
    columns = [name for name in found.schema_arrow.names if name != "token_ids"]
    groups = (found.read_row_group(group, columns=columns).to_pandas() for group in range(found.num_row_groups))
    return pd.concat(groups, ignore_index=True)
