"""What one adapter is over its rank: share of the parameters, bytes, time and logits, merged and beside the weights.

Lesson 5 of "Efficiently Serving LLMs".
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from typing_extensions import Unpack

from experiments.lora.figures import lora_ranks
from experiments.lora.tables import reference_notes
from framework.build import ChangeModel, at_most, num_blocks_for
from framework.config import with_keywords
from framework.engine.measured import MeasuredEngine, measured
from framework.engine.modelled import check_executes
from framework.lora.adapters import AdapterSource
from framework.lora.merged import merge_adapter
from framework.lora.none import serve_base
from framework.lora.service import service_of
from framework.measure.perplexity import window_logits
from framework.measure.steps import check_sizes, get_ready, measure_decode
from framework.report.finish import Findings, finish
from framework.report.tables import in_units
from framework.study.arguments import Setup
from framework.study.engine_cache import EngineCache
from framework.study.files import GrowingTable
from framework.study.parts import EngineParts
from framework.study.place import open_place

ADAPTER = "adapter-0"
LESSON = (
    "rank 2 on a 1024 × 1024 matrix: 2 · (1024 + 1024) / 1024² = {:.2%} (reported: 0.39%, lesson 5); smaller matrices "
    "have a larger share, and the table is of all matrices that the adapter is on"
)
CAPTION = (
    "Left, one adapter's parameters over its rank; right, decode steps with it beside the weights, merged, or absent."
)
COLUMNS = {  # of the page's table: column → header, and what it is multiplied with
    "rank": ("rank", 1),
    "num_parameters": ("parameters", 1),
    "share": ("share of the model (%)", 100),
    "num_bytes": ("MiB", 2**-20),
    "base_elapsed": ("no adapter (ms)", 1e3),
    "served_elapsed": ("served (ms)", 1e3),
    "merged_elapsed": ("merged (ms)", 1e3),
    "merged_error": ("logits, merged − served (%)", 100),
    "effect": ("logits, served − no adapter (%)", 100),
}
DEFINITIONS = {
    "Share of the model": "the adapter's parameters / the model's",
    "Served": "the adapter's product is computed beside the weights, in every step",
    "Merged": "the adapter is folded into the weights, once",
    "Logits, a − b": "root mean square of the difference of the logits of a and b / of the logits of b",
}


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
    quantization: ChangeModel,
    lora: ChangeModel,
    **setup: Unpack[Setup],
) -> None:
    """Leave a page with one row per rank: the adapter served beside the weights, and merged into them.

    Steps are of `batch_size` sequences of `context` tokens, which all ask for the adapter; `num_steps` are timed.
    Logits are of `prompt_len` random tokens, drawn with `seed`. Raises ValueError if `lora` does not serve adapters.
    """
    check_sizes({"decode": [[batch_size, context]], "prompt": [[1, prompt_len]]}, num_steps)
    check_executes(setup["engine"])
    adapters, targets = random_adapters(lora)
    if min(ranks, default=0) < 1:
        raise ValueError(f"ranks must be one or more numbers from 1 on, not {ranks}")
    place = open_place(setup["device"], setup["output_dir"])
    engines = EngineCache(place.device, lambda message: None)
    parts = EngineParts(model=setup["model"], quantization=quantization, lora=lora, engine=setup["engine"])
    small = at_most(setup["engine"], num_blocks_for(setup["engine"], batch_size, context + num_steps))

    def measure(lora: ChangeModel) -> Measured:
        engine = measured(engines.get(replace(parts, lora=lora, engine=small)))
        return measure_adapter(engine, steps=(batch_size, context, num_steps), prompt_len=prompt_len, seed=seed)

    with place.status("") as update, GrowingTable(place.output_dir / "ranks.csv") as rows:
        for rank in ranks:
            update(f"rank {rank}")
            base = measure(partial(serve_base))  # each time: a machine's speed drifts
            drawn = with_keywords(adapters, ranks=[rank])
            served = measure(with_keywords(lora, adapters=drawn, num_slots=1, max_rank=rank))
            fold = partial(merge_adapter, adapters=drawn, adapter_id=ADAPTER, targets=targets)
            rows.add([compare_adapter(rank, base, served, measure(fold))])
    table = rows.table()
    record = {"config": parts.config, "environment": place.environment, "ranks": rows.rows}
    findings = Findings(
        figures={"lora": (lora_ranks(table, f"{place.device_name}, decode steps of {batch_size}"), CAPTION)},
        tables={f"One adapter over its rank, decode steps of {batch_size}": in_units(table, COLUMNS)},
        notes=[LESSON.format(2 * (1024 + 1024) / 1024**2), *reference_notes({"served": lora}, place.device)],
        definitions=DEFINITIONS,
        files={"ranks.csv": table, "lora.json": record},
    )
    finish(place, f"one adapter on {place.device_name}", findings)


def random_adapters(lora: ChangeModel) -> tuple[partial[AdapterSource], list[str] | None]:
    """The source of the adapters that `lora` serves, and the layers they are on; ValueError unless they are random."""
    service = service_of(lora)
    if service.adapters is None or service.strategy is None:
        raise ValueError("experiment=lora needs lora=segmented, gathered or loop: what is merged is compared with it")
    if not service.are_random:
        raise ValueError("experiment=lora draws an adapter of each rank: it needs adapters@lora.adapters=random")
    return service.adapters, service.targets


@torch.inference_mode()
def measure_adapter(engine: MeasuredEngine, *, steps: tuple[int, int, int], prompt_len: int, seed: int) -> Measured:
    """With ADAPTER for all tokens, where the engine serves adapters."""
    model = engine.model
    num_adapter_parameters = engine.use_adapter(ADAPTER, prompt_len)
    prompt = torch.randint(model.config.vocab_size, (1, prompt_len), generator=torch.Generator().manual_seed(seed))
    logits = window_logits(model, prompt.to(engine.device))[0].float()
    get_ready(engine, steps[0])
    elapsed = measure_decode(engine, *steps, adapter_ids=[ADAPTER]).elapsed
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    num_adapter_bytes = num_adapter_parameters * engine.dtype.itemsize
    return Measured(num_parameters, num_adapter_parameters, num_adapter_bytes, elapsed, logits)


def compare_adapter(rank: int, base: Measured, served: Measured, merged: Measured) -> dict[str, float]:
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
