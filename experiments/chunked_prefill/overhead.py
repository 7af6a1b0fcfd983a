"""What it costs to compute a prompt in chunks, or beside decodes: measured, and as the authors of Sarathi report it."""

import pandas as pd

from experiments.chunked_prefill.tables import SAME
from framework.checks import positive, shown
from framework.engine.measured import MeasuredEngine
from framework.measure.mixed_steps import comparison_name, measure_comparisons, sizes_in
from framework.measure.steps import Say, get_ready

Ratios = dict[str, float]  # a comparison's name → its time / that of one step
COLUMNS = ["case", "kind", "num_prompt_tokens", "num_chunk_tokens", "device", "alone", "alone_device", "ratio"]


def measure_overhead(
    engine: MeasuredEngine, sizes: dict[str, list[list[int]]], num_steps: int, max_num_seqs: int, say: Say
) -> pd.DataFrame:
    """A row per comparison of `sizes` (as mixed_steps.FORMS names them) that fits; times on the device in seconds."""
    longest = max(row[0] for rows in sizes.values() for row in rows)
    get_ready(engine, max_num_seqs, longest_prompt=min(longest, engine.max_model_len))
    rows = []
    for comparison in measure_comparisons(sizes, engine, num_steps, say):
        device, alone = comparison.device, comparison.alone
        say(f"{comparison.name}: {1e3 * device:.1f} ms, {comparison.ratio:.3f}× of {1e3 * alone.device:.1f} ms")
        rows.append(
            {
                "case": comparison.name,
                "kind": comparison.kind,
                "num_prompt_tokens": comparison.sizes[0],
                "num_chunk_tokens": comparison.sizes[1] if comparison.kind == "chunks" else None,
                "device": device,
                "alone": alone.name,
                "alone_device": alone.device,
                "ratio": comparison.ratio,
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def reported_chunks(reported: Ratios) -> pd.DataFrame:
    """The reported ratios of prompts in chunks, with the columns that measured ones have."""
    found = [(sizes_in(name), ratio) for name, ratio in reported.items()]
    rows = [(*one[1], ratio) for one, ratio in found if one is not None and one[0] == "chunks"]
    return pd.DataFrame(rows, columns=["num_prompt_tokens", "num_chunk_tokens", "ratio"])


def check_ratios(reported: Ratios) -> None:
    """ValueError for a key that no comparison has as its name, or a ratio that is not above 0."""
    for name, ratio in reported.items():
        if sizes_in(name) is None:
            examples = [comparison_name("chunks", (2048, 512)), comparison_name("mixed", (448, 2048, 64, 1024))]
            raise ValueError(
                f"reported_ratios has {shown(name)}, which names no comparison; write it like "
                f"{' or '.join(map(repr, examples))}"
            )
        positive(f"reported_ratios.{name}", ratio)


def overhead_table(overhead: pd.DataFrame, reported: Ratios) -> pd.DataFrame:
    """One row per comparison: times (ms), their ratio and, where there is one, the reported ratio."""
    source = overhead["case"].map(reported)
    table = pd.DataFrame(
        {
            "steps": overhead["case"],
            "device (ms)": 1e3 * overhead["device"],
            "one step alone (ms)": 1e3 * overhead["alone_device"],
            "measured": overhead["ratio"],
        }
    )
    if source.isna().all():
        return table
    same = [SAME if ratio == ratio else None for ratio in source]
    return table.assign(
        **{"reported": source, "measured ÷ reported": overhead["ratio"] / source, "same quantity": same}
    )
