"""The step log that a cost model was fitted on, kept as one Parquet file that says what the model is of.

So it can be fitted again, by later code too, without the device.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from framework.cost.model import ADAPTER, VERSION, CostModel
from framework.cost.step_log import TIMES
from framework.paths import locate

KEY = b"cost_model"  # of the file's metadata: the cost model, without what is fitted
FLOATS = (*TIMES, "launch", "period", "rate")


def write_kept_log(path: Path, log: pd.DataFrame, model: CostModel) -> None:
    """Numbers of 4 bytes where they suffice; what is fitted of `model` is left out."""
    table = pa.Table.from_pandas(compact(log), preserve_index=False)
    of = ADAPTER.dump_json(replace(model, kinds={}, error={}))
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: of})
    pq.write_table(table, path, compression="zstd", compression_level=19)


def compact(log: pd.DataFrame) -> pd.DataFrame:
    """Whole numbers as int32, or as int64 where they are larger; others, and times, as float32."""
    found = {}
    for name, column in log.items():
        if name in FLOATS or (column % 1 != 0).any():
            found[name] = column.astype(np.float32)
        else:
            found[name] = column.astype(np.int32 if column.max() < 2**31 else np.int64)
    return pd.DataFrame(found)


def kept_model(path: str) -> CostModel | None:
    """What a step log is of, without what is to be fitted; None for one that does not say.

    Raises ValueError where it says it in a way that cannot be read.
    """
    place = locate(path)
    if place.suffix != ".parquet" or not place.exists():
        return None
    try:
        said = (pq.read_schema(place).metadata or {}).get(KEY)
        return None if said is None else ADAPTER.validate_python(json.loads(said) | {"version": VERSION})
    except (pa.ArrowException, ValidationError, ValueError, OSError) as error:
        raise ValueError(f"steps={path} does not say what it is of: {' '.join(str(error).split())}") from None
