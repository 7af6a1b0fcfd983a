"""What the multi-LoRA studies say per adapter: adapters.csv, and tables of fairness and of the most requested."""

from typing import Any

import pandas as pd
import torch

from framework.lora.segmented import Segmented
from framework.measure.fairness import adapter_table, fairness
from framework.report.tables import rate_title, shown_rates
from framework.study.files import write_atomically
from framework.study.sweep import Study

ON_CPU = "on a CPU the kernels' plain reference runs, one adapter after the other, and says nothing of their speed"
KEY = ["arm", "rate", "seed"]
FAIRNESS = "Fairness over adapters"
NUM_SHOWN = 5  # adapters of each arm on the page; adapters.csv has all
COLUMNS = {  # of the page's table: column → header, and what it is multiplied with
    "num_requests": ("requests", 1),
    "num_tokens": ("tokens served", 1),
    "ttft_mean": ("TTFT, mean (ms)", 1e3),
    "ttft_p99": ("TTFT P99 (ms)", 1e3),
    "normalized_latency_mean": ("normalized latency, mean (ms)", 1e3),
    "load_wait_mean": ("load wait, mean (ms)", 1e3),
}


def write_adapters(study: Study, points: pd.DataFrame) -> pd.DataFrame:
    """Write adapters.csv, one row per point and adapter; the table."""
    parts = []
    for point in points.to_dict("records"):
        requests = pd.read_parquet(study.folder(point["point"]) / "requests.parquet")
        parts.append(adapter_table(requests).assign(**{name: point[name] for name in KEY}))
    adapters = pd.concat(parts, ignore_index=True)
    adapters = adapters[[*KEY, *adapters.columns.drop(KEY)]]
    write_atomically(study.output_dir / "adapters.csv", adapters.to_csv(index=False))
    return adapters


def adapter_tables(study: Study, points: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Write adapters.csv; the page's tables, under their captions."""
    adapters = write_adapters(study, points)
    highest = adapters["rate"].max()
    at_highest = adapters[(adapters["rate"] == highest) & (adapters["seed"] == adapters["seed"].min())]
    return {
        FAIRNESS: fairness_table(adapters),
        f"The {NUM_SHOWN} most requested adapters, {rate_title(highest)}": most_requested(at_highest),
    }


def fairness_table(adapters: pd.DataFrame) -> pd.DataFrame:
    """One row per arm and rate; of several seeds, the mean."""
    rows = [dict(zip(KEY, key, strict=True)) | fairness(rows) for key, rows in adapters.groupby(KEY, sort=False)]
    means = pd.DataFrame(rows).groupby(["arm", "rate"], sort=False, as_index=False).mean()
    return pd.DataFrame(
        {
            "arm": means["arm"],
            "rate (1/s)": shown_rates(means["rate"]),
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


def reference_notes(loras: dict[str, Any], device: torch.device) -> list[str]:
    """A sentence on the arms whose way of serving adapters is there for its kernels, where `device` has none."""
    strategies = {arm: lora.keywords.get("strategy") for arm, lora in loras.items()}
    arms = [arm for arm, strategy in strategies.items() if strategy is not None and strategy.func is Segmented]
    return [f"{', '.join(arms)}: {ON_CPU}"] if arms and device.type == "cpu" else []
