"""What KV memory holds by policy, how many requests run in it, and what preemptions cost: from points to tables."""

from collections.abc import Mapping

import pandas as pd

from framework.report.tables import shown_rates
from framework.study.sweep import Study

PARTS = ("tokens", "reserved", "lost", "cached", "adapters", "free")
MEMORY = [
    *("server", "start_time", "elapsed", "num_seqs", "num_used_blocks", "num_cached_blocks", "num_adapter_blocks"),
    *("num_token_slots", "num_reserved_slots", "num_lost_slots", "num_free_slots"),
    *("num_swapped_out_blocks", "num_swapped_in_blocks", "swap_wait"),
]
KEPT = (
    *("arm", "rate", "offered_rate", "request_throughput", "e2e_mean", "normalized_latency_mean"),
    *("num_preemptions", "num_swaps"),
)

Reported = Mapping[str, Mapping[str, float]]  # arm → "tokens" (% of the slots), "running" (requests) → a paper's value


def shares_of(steps: pd.DataFrame) -> pd.DataFrame:
    """The parts of all slots, step by step; they add up to 1."""
    slots = steps[["num_token_slots", "num_reserved_slots", "num_lost_slots"]]
    used = steps["num_used_blocks"].to_numpy() > 0
    block_size = (slots.sum(axis="columns")[used] / steps["num_used_blocks"][used]).max()
    parts = slots.set_axis(list(PARTS[:3]), axis="columns")
    parts["cached"] = block_size * steps["num_cached_blocks"]
    parts["adapters"] = block_size * steps["num_adapter_blocks"]
    parts["free"] = steps["num_free_slots"]
    return parts.div(parts.sum(axis="columns"), axis="index")[list(PARTS)]


def point_row(steps: pd.DataFrame, last_admission: float) -> dict[str, float]:
    """Means over the time until the last request is admitted: shares of the slots, and running requests.

    And, of the whole replay, the blocks that were copied and the share of time that steps waited for them.
    """
    first = steps[steps["start_time"] <= last_admission]
    weights = first["elapsed"] / first["elapsed"].sum()
    shares = shares_of(first).mul(weights, axis="index").sum()
    return {
        **shares.to_dict(),
        "running": float((first["num_seqs"] * weights).sum()),
        "num_copied_blocks": float(steps["num_swapped_out_blocks"].sum() + steps["num_swapped_in_blocks"].sum()),
        "swap_wait": float(steps["swap_wait"].sum() / steps["elapsed"].sum()),
    }


def memory_rows(study: Study, points: pd.DataFrame) -> pd.DataFrame:
    """One row per arm and rate, the mean over seeds: `point_row` and what preemptions cost."""
    rows = []
    for point in points.to_dict("records"):
        folder = study.folder(point["point"])
        requests = pd.read_parquet(folder / "requests.parquet", columns=["scheduled_time"])
        steps = pd.read_parquet(folder / "steps.parquet", columns=MEMORY)
        rows.append({name: point[name] for name in KEPT} | point_row(steps, requests["scheduled_time"].max()))
    return pd.DataFrame(rows).groupby(["arm", "rate"], sort=False, as_index=False).mean()


def memory_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of the KV cache in percent."""
    parts = [part for part in PARTS if (rows[part] > 0).any()]
    shares = {f"{part} (%)": 100 * rows[part] for part in parts}
    in_use = rows["tokens"] + rows["reserved"] + rows["lost"]
    return pd.DataFrame(
        {"rate (req/s)": shown_rates(rows["offered_rate"]), "arm": rows["arm"], **shares}
        | {"tokens, of what requests hold (%)": 100 * rows["tokens"] / in_use}
    )


def cost_table(rows: pd.DataFrame, first: str) -> pd.DataFrame:
    """Throughput and latency, and what preemptions did to them."""
    base = rows[rows["arm"] == first].set_index("rate")["request_throughput"]
    return pd.DataFrame(
        {
            "rate (req/s)": shown_rates(rows["offered_rate"]),
            "arm": rows["arm"],
            "done (req/s)": rows["request_throughput"],
            f"÷ {first}": rows["request_throughput"] / rows["rate"].map(base),
            "E2E, mean (s)": rows["e2e_mean"],
            "normalized latency, mean (ms)": 1e3 * rows["normalized_latency_mean"],
            "preemptions": rows["num_preemptions"],
            "swaps": rows["num_swaps"],
            "blocks copied": rows["num_copied_blocks"],
            "waited for copies (% of the time)": 100 * rows["swap_wait"],
        }
    )


def describe(rows: pd.DataFrame) -> list[str]:
    """One line per arm, at the highest rate."""
    return [
        f"{row['arm']}: {row['tokens']:.1%} of the KV cache's slots hold tokens, {row['running']:.3g} requests run, "
        f"{row['request_throughput']:.3g} req/s; {row['num_preemptions']:.0f} preemptions, {row['num_swaps']:.0f} of "
        "them by swap"
        for row in rows[rows["rate"] == rows["rate"].max()].to_dict("records")
    ]
