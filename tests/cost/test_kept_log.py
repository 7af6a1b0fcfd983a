"""A step log on disk that says what it is of."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from framework.cost.kept_log import KEY, compact, kept_model, write_kept_log
from framework.cost.step_log import read_step_log
from tests.cost.test_fit import made
from tests.cost_models import cost_model


def test_a_log_comes_back_with_what_it_is_of(tmp_path):
    log = made(num=500).assign(held_out=1, replay=2, rate=4.0)
    log.loc[:9, "is_replayed"], log.loc[:9, "elapsed"] = 0, np.nan
    path = tmp_path / "log.parquet"
    model = cost_model(sizes={"decode": [1, 2, 4]})
    write_kept_log(path, log, model)
    found = read_step_log(str(path))
    pd.testing.assert_frame_equal(found, compact(log)[list(found)])
    assert {"held_out", "replay", "is_replayed"} <= set(found)
    said = kept_model(str(path))
    assert (said.sizes, said.engine, said.subject) == (model.sizes, model.engine, model.subject)
    assert said.kinds == {}


def test_numbers_are_small_unless_they_are_large():
    log = compact(pd.DataFrame({"num_prefill_pairs": [2**31], "num_seqs": [3.0], "elapsed": [0.1]}))
    assert [str(kind) for kind in log.dtypes] == ["int64", "int32", "float32"]


def test_other_files_do_not_say_what_they_are_of(tmp_path):
    log = made(num=10)
    log.to_csv(tmp_path / "log.csv")
    log.to_parquet(tmp_path / "log.parquet")
    assert [kept_model(str(tmp_path / f"log.{kind}")) for kind in ("csv", "parquet", "none")] == [None] * 3
    table = pq.read_table(tmp_path / "log.parquet")
    pq.write_table(table.replace_schema_metadata({KEY: b"{}"}), tmp_path / "log.parquet")
    with pytest.raises(ValueError, match=r"log.parquet does not say what it is of"):
        kept_model(str(tmp_path / "log.parquet"))
