"""Parquet files, some rows after the other: the same as at once, and what a full disk lacks."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from framework.study import parquet


def test_a_table_is_the_same_however_many_rows_are_written_together(monkeypatch, tmp_path):
    table = pd.DataFrame(
        {
            "name": [None, None, None, "a", "b"],
            "server": pd.array([None, 0, 1, 0, 1], dtype="Int64"),
            "waits": [None, None, None, [(1, 0.5)], None],
            "token_times": [np.arange(float(length)) for length in (0, 3, 1, 0, 2)],
            "token_ids": [np.arange(length, dtype=np.int32) for length in (0, 3, 1, 0, 2)],
        }
    )
    whole, parts = BytesIO(), {}
    table.to_parquet(whole)
    for rows in (1, 2, 5, 9):
        monkeypatch.setattr(parquet, "ROWS", rows)
        parts[rows] = tmp_path / f"{rows}.parquet"
        parquet.write_parquet(parts[rows], table)
        pd.testing.assert_frame_equal(pd.read_parquet(parts[rows]), pd.read_parquet(whole))
    assert pq.ParquetFile(parts[2]).num_row_groups == 3
    parquet.write_parquet(tmp_path / "empty.parquet", table[:0])
    empty = pd.read_parquet(tmp_path / "empty.parquet")
    assert list(empty.columns) == list(table.columns)
    assert empty.empty


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_a_disk_that_is_full_in_the_middle_of_a_table_is_named(tmp_path):
    path = tmp_path / "requests.parquet"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"No space left on device: {path} needs more than 0 bytes"):
        parquet.write_parquet(path, pd.DataFrame({"elapsed": np.arange(100_000.0)}))
