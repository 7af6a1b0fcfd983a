"""A log of steps that were really executed, as CSV or Parquet: of a replay here, or of any server."""

import numpy as np
import pandas as pd
import pyarrow as pa

from framework.paths import locate

REQUIRED = ("num_seqs", "num_prefill_tokens", "num_decode_tokens", "num_context_tokens", "elapsed")
OPTIONAL = {
    "max_context_tokens": np.nan,
    "num_prefill_pairs": np.nan,
    "num_adapters": 0,
    "num_adapter_loads": 0,
    "num_copied_blocks": 0,
    "is_first": 0,
    "device": np.nan,
    "host": np.nan,
    "is_replayed": 1,
}
TIMES = ("elapsed", "device", "host")
OF_REPLAYS = ("replay", "held_out")  # columns that a log may have, too
WAITED = 1.05  # times the host's work for the next step: no longer than this, a step waited for it
GAP = 1e-6  # seconds; a step that begins later after the one before was launched with none in flight


def from_steps(steps: pd.DataFrame, num_steps_ahead: int) -> pd.DataFrame:
    """The log of one replay's `steps.parquet`; `elapsed` is until the next step could begin.

    With no step ahead, the host's work is in it, and no step counts as the first. With one, `host` is this work until
    the step was launched, and `device` what it took beyond that: of a step after a pause the rest of its time, of any
    other no more than all of it, since the device may begin while the host still launches.
    """
    same = [*REQUIRED, "num_prefill_pairs", "num_adapters", "device"]
    log = steps[same].assign(
        max_context_tokens=steps.get("max_context_tokens", np.nan),
        num_adapter_loads=steps["num_adapter_loads"].where(steps["adapter_wait"] > 0, 0),
        num_copied_blocks=steps["num_swapped_out_blocks"] + steps["num_swapped_in_blocks"],
    )
    log["max_context_tokens"] = longest_context(log)
    if num_steps_ahead == 0:
        return log.assign(elapsed=log["elapsed"] + steps["update"], is_first=0, host=np.nan)
    end = steps["start_time"] + steps["elapsed"]
    is_first = steps["start_time"] > end.shift(fill_value=-np.inf) + GAP
    updates = steps["update"].shift(2, fill_value=0.0)  # of the step whose tokens had come when it was scheduled
    host = steps["schedule"] + steps["prepare"] + steps["launch"] + updates.mask(is_first, 0.0)
    left = log["elapsed"].where(~is_first, (log["elapsed"] - host).clip(lower=GAP))
    return log.assign(is_first=is_first.astype(int), device=np.minimum(log["device"], left), host=host)


def read_step_log(path: str) -> pd.DataFrame:
    """The columns of REQUIRED, OPTIONAL ones filled in, and those of OF_REPLAYS that there are.

    Without the longest context, all of a step's are equally long; without pairs of prompts, every prompt counts as
    whole and equally long. Raises ValueError naming the file and the column, or the line, of what is missing or no
    number.
    """
    place = locate(path)
    try:
        table = pd.read_parquet(place) if place.suffix == ".parquet" else pd.read_csv(place)
    except FileNotFoundError:
        raise ValueError(f"steps={path} cannot be read: there is no such file") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"steps={path} cannot be read: {' '.join(str(error).split())}") from None
    missing = [name for name in REQUIRED if name not in table]
    if missing:
        raise ValueError(f"steps={path} has no column {', '.join(missing)}; a step log has {', '.join(REQUIRED)}")
    is_apart = table["is_replayed"] == 0 if "is_replayed" in table else pd.Series(False, table.index)
    known = [name for name in (*REQUIRED, *OPTIONAL, *OF_REPLAYS) if name in table]
    log = pd.DataFrame({name: number_column(table, name, path, is_apart) for name in known})
    log = log.assign(**{name: value for name, value in OPTIONAL.items() if name not in log})
    log["max_context_tokens"] = longest_context(log)
    num_prompts = (log["num_seqs"] - log["num_decode_tokens"]).clip(lower=1)
    length = log["num_prefill_tokens"] / num_prompts
    log["num_prefill_pairs"] = log["num_prefill_pairs"].fillna(num_prompts * length * (length + 1) / 2)
    return log


def longest_context(log: pd.DataFrame) -> "pd.Series[float]":
    """Tokens of each step's longest sequence; where they are not known, all its sequences count as equally long."""
    mean: pd.Series[float] = log["num_context_tokens"] / log["num_seqs"]
    return log["max_context_tokens"].fillna(mean)


def number_column(
    table: pd.DataFrame, name: str, path: str, is_apart: "pd.Series[bool] | bool" = False
) -> "pd.Series[float]":
    """ValueError for a cell that is no number, is below zero or, of the times, is 0.

    It may be empty in `device` and `host`, and in `elapsed` where the step was timed apart.
    """
    column = pd.to_numeric(table[name], errors="coerce")
    is_time = name in TIMES
    is_bad = ~(column > 0) if is_time else ~(column >= 0)
    is_bad |= np.isinf(column)
    if is_time:
        is_bad &= table[name].notna() | ((name == "elapsed") & ~is_apart)
    if is_bad.any():
        row = int(np.argmax(is_bad))
        shown = table[name].astype(object).iloc[row]
        wanted = "a number above 0" if is_time else "a number of at least 0"
        raise ValueError(f"steps={path}, row {row + 1}: {name} is {shown}, not {wanted}")
    return column
