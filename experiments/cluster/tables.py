"""The table of the study of routers: one row per router and rate."""

import pandas as pd

from framework.measure.metrics import METRIC_OF
from framework.measure.rates import aggregate
from framework.report.tables import in_units, shown_rates
from framework.study.sweep import Study

LOADS = "adapter loads per request"
IMBALANCES = ("imbalance_requests", "imbalance_tokens", "imbalance_busy", "imbalance_load")
SHOWN = ("ttft_p50", "ttft_p99", "e2e_p50", *IMBALANCES)


def router_rows(study: Study, points: pd.DataFrame) -> pd.DataFrame:
    """What `aggregate` makes, and `adapter_loads` per request, mean over seeds."""
    rows = aggregate(points)
    loads = points.assign(adapter_loads=[adapter_loads(study, point) for point in points["point"]])
    means = loads.groupby(["arm", "rate"], sort=False, as_index=False)["adapter_loads"].mean()
    return rows.merge(means, on=["arm", "rate"])


def adapter_loads(study: Study, point: str) -> float:
    """Adapters that the point's steps brought to the device, per request that was served."""
    folder = study.folder(point)
    steps = pd.read_parquet(folder / "steps.parquet", columns=["num_adapter_loads"])
    requests = pd.read_parquet(folder / "requests.parquet", columns=["refused"])
    return float(steps["num_adapter_loads"].sum() / requests["refused"].isna().sum())


def router_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Of `router_rows`: latencies, also over the first arm's at the same rate, imbalance, and what was found."""
    names = [*SHOWN, "prefix_hits"] if rows["prefix_hits"].any() else [*SHOWN]
    ends = [f"{name}{end}" for name in names if METRIC_OF[name].name != "ttft" for end in ("_low", "_high")]
    columns = {name: (METRIC_OF[name].header(name), METRIC_OF[name].unit.scale) for name in names}
    first = rows[rows["arm"] == rows["arm"].iloc[0]].set_index("rate")["ttft_p99"]
    over_first = rows["ttft_p99"] / rows["rate"].map(first)
    table = pd.DataFrame({"arm": rows["arm"], "rate (req/s)": shown_rates(rows["offered_rate"])})
    table = table.join(in_units(rows.drop(columns=ends), columns))
    table.insert(len(table.columns) - len(names) + 2, f"P99 ÷ {rows['arm'].iloc[0]}", over_first)
    return table.assign(**{LOADS: rows["adapter_loads"]}) if rows["adapter_loads"].any() else table
