"""The tables of experiment=quantization and the captions of its figures; bytes are in 10^6 (MB)."""

import pandas as pd
from typing_extensions import TypedDict

from framework.measure.cases import cases_table
from framework.measure.rates import highest_within, saturation
from framework.report.tables import in_units

CAPTIONS = {
    "quality_bytes": "Bytes of each arm's model, and what its predictions of a text lose against the same model in "
    "float32; bars: 95% intervals over windows of the text. Further left is better.",
    "decode_steps": "Time from one decode step to the next over the batch size, and how many times as fast that is as "
    "the first arm.",
}
BYTES = {
    name: (f"{header} (MB)", 1e-6)
    for name, header in {
        "total": "total",
        "weights": "weights",
        "scales": "scales",
        "embeddings": "embeddings",
        "head": "head",
        "other": "other",
        "allocated": "on GPU",
    }.items()
}
QUALITY = {
    "weight_error": ("weight error (%)", 100),
    "logit_error": ("logit error (%)", 100),
    "kl": ("KL (1e-3 nats)", 1e3),
    "top1_agreement": ("top-1 agreement (%)", 100),
    "perplexity": ("perplexity", 1),
    "perplexity_change": ("change of perplexity (%)", 100),
}
CACHE = {
    "weight_bytes": ("weights (MB)", 1e-6),
    "kv_bytes": ("KV cache (MB)", 1e-6),
    "num_blocks": ("KV blocks", 1),
    "num_slots": ("KV tokens", 1),
}


class Settings(TypedDict):
    """Keywords of the study that its tables name."""

    text: str | None
    text_window: int
    prompt: str | None
    memory_bytes: int | None


def part_tables(
    models: pd.DataFrame, engines: pd.DataFrame, cases: pd.DataFrame, settings: Settings
) -> dict[str, pd.DataFrame]:
    """What was measured of the models and the engines, each by its caption."""
    bytes_of = models[["arm", "dtype"]].join(in_units(models, BYTES)).dropna(axis="columns", how="all")
    tables = {"Bytes of the model; other: norms and position tables": bytes_of}
    against = "against the same model in float32"
    if "kl" in models:
        num_tokens = models["num_scored_tokens"].iloc[0] + 1
        against = f"{settings['text']}, {num_tokens:,} tokens in windows of {settings['text_window']}, {against}"
    tables[f"Quality: {against}"] = models[["arm"]].join(in_units(models, QUALITY))
    if settings["memory_bytes"] is not None and not engines.empty:
        tables[f"Memory: {memory(settings['memory_bytes'])}"] = engines[["arm"]].join(in_units(engines, CACHE))
    if not cases.empty:
        tables["Decode steps"] = decode_table(cases)
    if settings["prompt"] is not None and not engines.empty:
        tables[f"Greedy text after {settings['prompt']!r}"] = engines[["arm"]].assign(text=engines["text"].map(repr))
    return tables


def memory(memory_bytes: int | None) -> str:
    if memory_bytes is None:
        return "KV cache as large as the engine has it"
    return f"{1e-6 * memory_bytes:,.1f} MB for weights and KV cache"


def decode_table(cases: pd.DataFrame) -> pd.DataFrame:
    """Every arm's step against its floor, batch size by batch size, and how many times as fast as the first arm's."""
    ordered = cases.sort_values("num_seqs", kind="stable")
    first = cases["arm"].iloc[0]
    elapsed = ordered["case"].map(cases[cases["arm"] == first].set_index("case")["elapsed"])
    return ordered[["arm"]].join(cases_table(ordered)).assign(**{f"× {first}": elapsed / ordered["elapsed"]})


def room_table(engines: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """Per arm that serves, what its memory holds and what it serves, and both over the first one's."""
    limits = {
        "KV tokens": engines.reindex(columns=["arm", "num_slots"]).set_index("arm")["num_slots"],
        "rate within the SLOs (req/s)": pd.Series(highest_within(points)),
        "served at most (req/s)": pd.Series(saturation(points)),
    }
    table = pd.DataFrame(limits).reindex(points["arm"].unique())
    ratios = (table / table.iloc[0]).rename(columns=lambda name: f"{name.partition(' (')[0]}, × {table.index[0]}")
    return table.join(ratios).rename_axis("arm").reset_index()


def footprint_notes(
    models: pd.DataFrame, *, arms: list[str], num_bytes: list[int], not_kept: int, source: str
) -> list[str]:
    """Bytes of the model before and after, `arms`, beside a source's `num_bytes`; none where an arm has failed.

    `not_kept` of the source's bytes are no weights.
    """
    totals = models.set_index("arm")["total"]
    if not set(arms) <= set(totals.index):
        return []
    weights = [size - not_kept for size in num_bytes]
    return [
        f"{' → '.join(arms)}: {megabytes(*totals[arms])}   (reported: {megabytes(*num_bytes)}, {source}; "
        f"without the {1e-6 * not_kept:.1f} MB of causal masks that were counted there: {megabytes(*weights)})"
    ]


def megabytes(before: float, after: float) -> str:
    return f"{1e-6 * before:.1f} MB → {1e-6 * after:.1f} MB = {before / after:.2f}×"
