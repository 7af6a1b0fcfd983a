"""The table of the study of scaling: one row per router and number of servers."""

from collections.abc import Mapping
from math import hypot, nan

import numpy as np
import pandas as pd

from framework.study.capacity import ArmCapacity

Ends = tuple[float, float, float]  # a value and its interval


def scaling_rows(capacities: Mapping[str, ArmCapacity], num_servers: Mapping[str, int], one: str) -> pd.DataFrame:
    """Of every arm ROUTER-N: capacity (1/s) and efficiency with their intervals; NaN where there is no capacity.

    Each router's first row is the arm `one`. No row if that has no capacity.
    """
    if one not in capacities or capacities[one].capacity.problem:
        return pd.DataFrame()
    single = ends_of(capacities[one])
    rows: list[dict[str, object]] = []
    for arm, found in capacities.items():
        if arm == one:
            continue
        router, number, ends = arm.rpartition("-")[0], num_servers[arm], ends_of(found)
        if all(row["router"] != router for row in rows):
            rows.append(row_of(router, 1, single, (1.0, 1.0, 1.0)))
        rows.append(row_of(router, number, ends, efficiency(ends, single, number)))
    return pd.DataFrame(rows)


def ends_of(found: ArmCapacity) -> Ends:
    capacity = found.capacity
    return (nan, nan, nan) if capacity.problem else (capacity.rate, max(capacity.low, 0.0), capacity.high)


def efficiency(several: Ends, single: Ends, number: int) -> Ends:
    """A quotient; the relative errors of both add up as those of independent quantities do."""
    value = several[0] / (number * single[0])
    below, above = (hypot(several[end] / several[0] - 1, single[3 - end] / single[0] - 1) for end in (1, 2))
    return value, value * (1 - below), value * (1 + above)


def row_of(router: str, number: int, capacity: Ends, share: Ends) -> dict[str, object]:
    return {"router": router, "servers": number} | columns("capacity", capacity) | columns("efficiency", share)


def columns(name: str, ends: Ends) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def scaling_table(rows: pd.DataFrame) -> pd.DataFrame:
    """With their units; efficiency in percent."""
    table = {"router": rows["router"], "servers": rows["servers"]}
    for end in ("", "_low", "_high"):
        table[f"capacity (req/s){end}"] = rows[f"capacity{end}"]
    for end in ("", "_low", "_high"):
        table[f"efficiency (%){end}"] = np.round(100 * rows[f"efficiency{end}"], 1)
    return pd.DataFrame(table)
