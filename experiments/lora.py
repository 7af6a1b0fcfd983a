"""What one adapter is over its rank: share of the parameters, bytes, time and logits, merged and beside the weights.

Lesson 5 of "Efficiently Serving LLMs".
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.table import Table
from torch import Tensor

from framework.arms import with_keywords
from framework.config import describe
from framework.console import make_console, short
from framework.engines import EngineCache
from framework.lora.merged import merge_adapter
from framework.lora.none import serve_base
from framework.perplexity import window_logits
from framework.plots import save
from framework.plots_lora import lora_ranks
from framework.points import write_atomically, write_json
from framework.provenance import environment, resolve_device
from framework.speed import check_sizes, get_ready, measure_decode

ADAPTER = "adapter-0"
LESSON = "rank 2 on a 1024 × 1024 matrix: {:.2%} (reported: 0.39%, lesson 5)"


@dataclass(frozen=True, slots=True)
class Measured:
    """A model's parameters, those of its adapter and their bytes, a decode step (s), and a prompt's logits."""

    num_parameters: int
    num_adapter_parameters: int
    num_adapter_bytes: int
    elapsed: float
    logits: Tensor  # (prompt_len, vocab_size) float32


def run(
    *,
    ranks: list[int],
    batch_size: int,
    context: int,
    num_steps: int,
    prompt_len: int,
    seed: int,
    model: Any,
    quantization: Any,
    lora: Any,
    engine: Any,
    device: str,
    output_dir: str,
) -> None:
    """Print, write and draw one row per rank: the adapter served beside the weights, and merged into them.

    Steps are of `batch_size` sequences of `context` tokens, which all ask for the adapter; `num_steps` are timed.
    Logits are of `prompt_len` random tokens, drawn with `seed`. Raises ValueError if `lora` does not serve adapters.
    """
    check_sizes({"decode": [[batch_size, context]], "prompt": [[1, prompt_len]]}, num_steps)
    if "strategy" not in describe(lora):
        raise ValueError("experiment=lora needs lora=segmented, gathered or loop: what is merged is compared with it")
    console, resolved, folder = make_console(), resolve_device(device), Path(output_dir)
    engines = EngineCache(resolved, lambda message: None)
    arm = {"model": model, "quantization": quantization, "engine": engine}
    measure = partial(measure_adapter, sizes=(batch_size, context, num_steps), prompt_len=prompt_len, seed=seed)
    base = measure(engines.get(arm | {"lora": partial(serve_base)}))
    rows = []
    for rank in ranks:
        with console.status(f"rank {rank}"):
            adapters = with_keywords(lora.keywords["adapters"], ranks=[rank])
            served = measure(
                engines.get(arm | {"lora": with_keywords(lora, adapters=adapters, num_slots=1, max_rank=rank)})
            )
            fold = partial(merge_adapter, adapters=adapters, adapter_id=ADAPTER, targets=lora.keywords.get("targets"))
            rows.append(compare(rank, base, served, measure(engines.get(arm | {"lora": fold}))))
    table = pd.DataFrame(rows)
    title = f"{environment(resolved)['device']}, decode steps of {batch_size}"
    console.print(ranks_table(table, title))
    console.print(LESSON.format(2 * (1024 + 1024) / 1024**2), highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "ranks.csv", table.to_csv(index=False))
    record = {"config": describe(arm | {"lora": lora}), "environment": environment(resolved), "ranks": rows}
    write_json(folder / "lora.json", record)
    figures = save({"lora": lora_ranks(table, title)}, folder / "figures")
    for path in (folder / "ranks.csv", folder / "lora.json", *figures):
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


@torch.inference_mode()
def measure_adapter(engine: Any, *, sizes: tuple[int, int, int], prompt_len: int, seed: int) -> Measured:
    """With ADAPTER for all tokens, where the engine serves adapters."""
    model, pool = engine.model, engine.adapters.pool
    num_adapter_parameters = num_adapter_bytes = 0
    if pool is not None:
        rows = pool.load(ADAPTER)
        pool.put(1, rows)
        num_adapter_parameters = sum(a.numel() + b.numel() for a, b in pool.layout.parts(rows).values())
        num_adapter_bytes = num_adapter_parameters * rows.itemsize
        tables = pool.strategy.tables(np.ones(prompt_len, dtype=np.int64))
        pool.set_step(torch.from_numpy(tables).to(engine.device), tables)
    prompt = torch.randint(model.config.vocab_size, (1, prompt_len), generator=torch.Generator().manual_seed(seed))
    logits = window_logits(model, prompt.to(engine.device))[0].float()
    get_ready(engine, sizes[0])
    elapsed = measure_decode(engine, *sizes, num_adapters=1).elapsed
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return Measured(num_parameters, num_adapter_parameters, num_adapter_bytes, elapsed, logits)


def compare(rank: int, base: Measured, served: Measured, merged: Measured) -> dict[str, Any]:
    """One row; of logits, `merged_error` is how far merged is from served, `effect` how far served is from base."""
    return {
        "rank": rank,
        "num_parameters": served.num_adapter_parameters,
        "share": served.num_adapter_parameters / base.num_parameters,
        "num_bytes": served.num_adapter_bytes,
        "base_elapsed": base.elapsed,
        "served_elapsed": served.elapsed,
        "merged_elapsed": merged.elapsed,
        "merged_error": ((merged.logits - served.logits).norm() / served.logits.norm()).item(),
        "effect": ((served.logits - base.logits).norm() / base.logits.norm()).item(),
    }


def ranks_table(table: pd.DataFrame, title: str) -> Table:
    headers = ("parameters", "share", "MiB", "base, ms", "served, ms", "merged, ms", "merged − served", "served − base")
    shown = Table("rank", title=title, caption="differences of logits: root mean square, relative")
    for header in headers:
        shown.add_column(header, justify="right")
    for row in table.to_dict("records"):
        times = [short(1e3 * row[f"{name}_elapsed"]) for name in ("base", "served", "merged")]
        size = (f"{row['num_parameters']:,}", f"{row['share']:.3%}", short(row["num_bytes"] / 2**20))
        shown.add_row(str(row["rank"]), *size, *times, f"{row['merged_error']:.1e}", f"{row['effect']:.1e}")
    return shown
