"""What the multi-LoRA studies say per adapter: adapters.csv, and tables of fairness and of the most requested."""

import re

import pandas as pd
import torch

from framework.build import ChangeModel
from framework.lora.segmented import Segmented
from framework.lora.service import service_of
from framework.measure.fairness import adapter_table, fairness
from framework.measure.rates import offered_at
from framework.report.tables import rate_title, shown_rates
from framework.study.sweep import Study

ON_CPU = "on a CPU plain products stand for the Triton kernels, two per adapter, and say nothing of the kernels' speed"
KEY = ["arm", "rate", "seed"]
FAIRNESS = "Fairness over adapters"
NUM_SHOWN = 5  # adapters of each arm on the page; adapters.csv has all
LABELS = {  # metrics that a source reports, as axes and captions name them
    "request_throughput": "throughput (requests/s)",
    "output_throughput": "output throughput (tokens/s)",
    "ttft_mean": "mean TTFT (s)",
    "slo_attainment": "share of requests within the SLO",
}
Reported = dict[str, dict[str, dict[str, float]]]  # metric → whose → mix or rate → value
COLUMNS = {  # of the page's table: column → header, and what it is multiplied with
    "num_requests": ("requests", 1),
    "num_tokens": ("tokens served", 1),
    "ttft_mean": ("TTFT, mean (ms)", 1e3),
    "ttft_p99": ("TTFT P99 (ms)", 1e3),
    "normalized_latency_mean": ("normalized latency, mean (ms)", 1e3),
    "load_wait_mean": ("load wait, mean (ms)", 1e3),
}


def adapter_rows(study: Study, points: pd.DataFrame) -> pd.DataFrame:
    """One row per point and adapter: what adapters.csv has."""
    parts = []
    for point in points.to_dict("records"):
        requests = pd.read_parquet(study.folder(point["point"]) / "requests.parquet")
        parts.append(adapter_table(requests).assign(**{name: point[name] for name in (*KEY, "offered_rate")}))
    adapters = pd.concat(parts, ignore_index=True)
    return adapters[[*KEY, *adapters.columns.drop(KEY)]]


def adapter_tables(adapters: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The page's tables, under their captions."""
    highest = adapters["rate"].max()
    at_highest = adapters[(adapters["rate"] == highest) & (adapters["seed"] == adapters["seed"].min())]
    return {
        FAIRNESS: fairness_table(adapters),
        f"The {NUM_SHOWN} most requested adapters, {rate_title(offered_at(adapters, highest))}": most_requested(
            at_highest
        ),
    }


def fairness_table(adapters: pd.DataFrame) -> pd.DataFrame:
    """One row per arm and rate; of several seeds, the mean."""
    rows = [
        dict(zip(KEY, key, strict=True)) | {"offered_rate": rows["offered_rate"].iloc[0]} | fairness(rows)
        for key, rows in adapters.groupby(KEY, sort=False)
    ]
    means = pd.DataFrame(rows).groupby(["arm", "rate"], sort=False, as_index=False).mean()
    return pd.DataFrame(
        {
            "arm": means["arm"],
            "rate (req/s)": shown_rates(means["offered_rate"]),
            "adapters": means["num_adapters"],
            "Jain's index": means["jain_index"],
            "max ÷ min": means["max_min_ratio"],
            "load wait, mean (ms)": 1e3 * means["load_wait_mean"],
        }
    )


def most_requested(adapters: pd.DataFrame) -> pd.DataFrame:
    shown = adapters.groupby("arm", sort=False).head(NUM_SHOWN)
    scaled = {header: scale * shown[name] for name, (header, scale) in COLUMNS.items()}
    return pd.DataFrame({"arm": shown["arm"], "adapter": shown["adapter_id"], **scaled})


def reference_notes(loras: dict[str, ChangeModel], device: torch.device) -> list[str]:
    """A sentence on the arms whose way of serving adapters is there for its kernels, where `device` has none."""
    arms = [arm for arm, lora in loras.items() if service_of(lora).strategy is Segmented]
    return [f"{', '.join(arms)}: {ON_CPU}"] if arms and device.type == "cpu" else []


def beside_reported(measured: pd.DataFrame, x: str, reported: Reported) -> pd.DataFrame:
    """Measured rows first; mixes that are named by numbers are numbers."""
    own = measured.rename(columns={x: "x"}).melt(["arm", "x"], list(reported), "metric").assign(is_reported=False)
    theirs = [
        {"arm": f"{whose} (reported)", "x": at, "metric": metric, "value": value, "is_reported": True}
        for metric, values in reported.items()
        for whose, points in values.items()
        for at, value in points.items()
    ]
    table = pd.concat([own, pd.DataFrame(theirs, columns=own.columns)], ignore_index=True)
    are_numbers = all(re.fullmatch(r"[\d.]+", str(at)) for at in table["x"])
    return table.astype({"x": float}) if are_numbers else table


def mix_tables(over_mixes: pd.DataFrame, over_rates: pd.DataFrame, rate: float, mix: str) -> dict[str, pd.DataFrame]:
    """One table per metric over the mixes, with the last ÷ the first, and one over the rates."""
    captions = {}
    for metric, rows in over_mixes.groupby("metric", sort=False):
        table = rows.pivot_table(index="arm", columns="x", values="value", sort=False)
        if pd.api.types.is_numeric_dtype(table.columns):
            table = table.sort_index(axis=1).rename(columns="{:g}".format)
        first, last = table.columns[0], table.columns[-1]
        ratio = {f"{last} ÷ {first}": table[last] / table[first]}
        captions[f"By adapters, {rate_title(rate)}: {LABELS[str(metric)]}"] = table.assign(**ratio).reset_index()
    if not over_rates.empty:
        table = over_rates.pivot_table(index=["arm", "x"], columns="metric", values="value", sort=False).reset_index()
        captions[f"By arrival rate, adapters: {mix}"] = table.rename(columns=LABELS | {"x": "rate (req/s)"})
    return captions
