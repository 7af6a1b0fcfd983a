"""The console tables of experiment=quantization, with units and 95% intervals; bytes are in 10^6 (MB)."""

import pandas as pd
from rich.table import Table

from framework.console import short
from framework.metrics import TARGET_ATTAINMENT

QUALITY = ["logit\nerror", "perplexity", "÷ float32's", "top-1\nagreement", "KL\n1e-3 nats"]
INTERVALS = r"\[low, high]: 95% interval over windows of the text; of the ratio, over their differences"


def model_table(models: pd.DataFrame, title: str) -> Table:
    """Per arm: bytes by kind, errors and, where a text was read, quality against the model in float32."""
    has_text, on_gpu = "kl" in models, models["allocated"].notna().any()
    table = Table("arm", title=title, caption=INTERVALS if has_text else None)
    headers = ["total\nMB", "weights\nMB", "scales\nMB", "embed.,\nhead, MB", *(["on GPU\nMB"] if on_gpu else [])]
    for header in [*headers, "weight\nerror", *(QUALITY if has_text else [])]:
        table.add_column(header, justify="right")
    for row in models.to_dict("records"):
        sizes = [row["total"], row["weights"], row["scales"], row["embeddings"] + row["head"]]
        sizes += [row["allocated"]] if on_gpu else []
        cells = [*(f"{1e-6 * size:,.2f}" for size in sizes), f"{row['weight_error']:.2%}"]
        if has_text:
            cells += [
                f"{row['logit_error']:.2%}",
                interval(row, "perplexity", "{:.4g}"),
                interval(row, "perplexity_ratio", "{:.4f}"),
                interval(row, "top1_agreement", "{:.1%}"),
                interval(row, "kl", "{:.3g}", 1e3),
            ]
        table.add_row(f"{row['arm']}\n{row['dtype']}", *cells)
    return table


def interval(row: dict[str, float], name: str, form: str, scale: float = 1.0) -> str:
    value, low, high = (form.format(scale * row[key]) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value}\n\\[{low}, {high}]"


def footprint_line(models: pd.DataFrame, *, arms: list[str], num_bytes: list[int], not_kept: int, source: str) -> str:
    """Bytes of the model before and after, `arms`, beside a source's `num_bytes`; `not_kept` of both are no weights."""
    totals = models.set_index("arm")["total"]
    missing = [arm for arm in arms if arm not in totals]
    if missing:
        raise ValueError(
            f"reference.arms names {', '.join(missing)}; arms that were measured: {', '.join(totals.index)}"
        )
    weights = [size - not_kept for size in num_bytes]
    return (
        f"{' → '.join(arms)}: {megabytes(*totals[arms])}   (reported: {megabytes(*num_bytes)}, {source}; "
        f"without the {1e-6 * not_kept:.1f} MB of causal masks that were counted there: {megabytes(*weights)})"
    )


def megabytes(before: float, after: float) -> str:
    return f"{1e-6 * before:.1f} MB → {1e-6 * after:.1f} MB = {before / after:.2f}×"


def engine_table(engines: pd.DataFrame, cases: pd.DataFrame, memory_bytes: int | None, title: str) -> Table:
    """Per arm: its KV cache, and the time from one decode step to the next with its factor over the first arm's."""
    budget = "as the engine has it" if memory_bytes is None else f"in {1e-6 * memory_bytes:,.1f} MB with the weights"
    table = Table(
        "arm", title=title, caption=f"KV cache {budget}; decode: ms from step to step, ×: as fast as the first"
    )
    for header in ("KV cache\nMB", "KV\nblocks", "KV\ntokens"):
        table.add_column(header, justify="right")
    times = {} if cases.empty else cases.set_index(["num_seqs", "arm"])["elapsed"].to_dict()
    batch_sizes = sorted({num_seqs for num_seqs, _ in times})
    for num_seqs in batch_sizes:
        table.add_column(f"decode\n{num_seqs} seqs", justify="right")
    for row in engines.to_dict("records"):
        cells = [f"{1e-6 * row['kv_bytes']:,.2f}", f"{row['num_blocks']:,}", f"{row['num_slots']:,}"]
        for num_seqs in batch_sizes:
            first = next(time for (size, _), time in times.items() if size == num_seqs)
            time = times.get((num_seqs, row["arm"]))
            cells.append("" if time is None else f"{short(1e3 * time)} ({first / time:.2f}×)")
        table.add_row(row["arm"], *cells)
    return table


def text_table(engines: pd.DataFrame, prompt: str) -> Table:
    table = Table("arm", "text", title=f"greedy after {prompt!r}")
    for row in engines.to_dict("records"):
        table.add_row(row["arm"], repr(row["text"]))
    return table


def capacity_table(capacities: pd.DataFrame, memory_bytes: int | None) -> Table:
    """Per arm: what its memory holds, and the highest of the rates tried at which enough requests met the SLOs."""
    title = (
        "capacity" if memory_bytes is None else f"capacity with {1e-6 * memory_bytes:,.1f} MB for weights and KV cache"
    )
    caption = f"highest of the rates, short of saturation, with {TARGET_ATTAINMENT:.0%} of requests within the SLOs"
    table = Table("arm", title=title, caption=caption)
    for header in ("weights\nMB", "KV cache\nMB", "KV blocks", "capacity\nreq/s", "served at most\nreq/s"):
        table.add_column(header, justify="right")
    for row in capacities.to_dict("records"):
        sizes = [f"{1e-6 * row[name]:,.2f}" for name in ("weight_bytes", "kv_bytes")]
        limits = {"num_blocks": "", "capacity": "below every rate", "served_at_most": "not saturated"}
        cells = [
            f"{short(row[name])} ({row[name] / capacities[name].iloc[0]:.2f}×)" if row[name] == row[name] else unknown
            for name, unknown in limits.items()
        ]
        table.add_row(row["arm"], *sizes, *cells)
    return table
