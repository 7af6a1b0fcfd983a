"""Single steps on a grid, as rows of a step log: decodes, whole prompts, and parts of prompts beside decodes."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from framework.engine.measured import MeasuredEngine
from framework.engine.torch_engine.decode import batch_sizes
from framework.engine.torch_engine.mixed import SIZES
from framework.measure.mixed_steps import check_comparisons, time_mixed
from framework.measure.steps import Say, check_sizes, get_ready, measure_decode, measure_prefill, why_no_room
from framework.study.files import locked, write_atomically

Cell = tuple[str, tuple[int, ...]]  # kind, and its sizes as in Grid
DENSE = 64  # sequences up to which every size of a graph is timed; beyond, every other one


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is timed apart from replays, `num_steps` steps of each.

    `decode` are sequences (None: as many sizes as the engine tells apart), each with every one of `contexts` tokens;
    `prefill` [prompts, tokens each]; `mixed` [prompt tokens, cached before them, decodes, context of each].
    """

    decode: list[int] | None
    contexts: list[int]
    prefill: list[list[int]]
    mixed: list[list[int]]
    num_steps: int


def check_grid(grid: Grid) -> None:
    """ValueError for sizes that no step has."""
    pairs = [[size, context] for size in grid.decode or [1] for context in grid.contexts]
    check_sizes({"decode": pairs, "prefill": grid.prefill}, grid.num_steps)
    check_comparisons({"mixed": grid.mixed}, grid.num_steps)


def graph_sizes(engine: MeasuredEngine, max_num_seqs: int) -> dict[str, list[int]]:
    """The rows that the engine's graphs hold, of each kind of step."""
    if not engine.switches["cuda_graphs"]:
        return {}
    return {"decode": batch_sizes(max_num_seqs), "prompt": list(SIZES)}


def cells_of(grid: Grid, sizes: dict[str, list[int]], max_num_seqs: int) -> list[Cell]:
    """In an order in which the first ones tell most: every second context after the others."""
    powers = [1 << bit for bit in range(max_num_seqs.bit_length())]
    captured = [size for index, size in enumerate(sizes.get("decode", [])) if size <= DENSE or index % 2]
    decode = grid.decode or sorted({*(captured or powers), max_num_seqs})
    contexts = [*grid.contexts[::2], *grid.contexts[1::2]]
    cells: list[Cell] = [("prefill", tuple(row)) for row in grid.prefill]
    cells += [("mixed", tuple(row)) for row in grid.mixed]
    return cells + [("decode", (size, context)) for context in contexts for size in decode]


def measure_cells(
    engine: MeasuredEngine, cells: list[Cell], num_steps: int, max_num_seqs: int, path: Path, seconds: float, say: Say
) -> pd.DataFrame:
    """A row per cell, those in the CSV at `path` as they are; others are timed and added to it, for at most `seconds`.

    What does not fit the engine is skipped, and said so, and so is what is left when the time is over.
    """
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    known = {row["cell"] for row in rows}
    new = [cell for cell in fitting(engine, cells, num_steps, say) if name_of(cell) not in known]
    if new:
        longest = max([sizes[0 if kind == "mixed" else 1] for kind, sizes in new if kind != "decode"], default=1)
        get_ready(engine, max_num_seqs, longest_prompt=longest)
    until = time.monotonic() + seconds
    for index, cell in enumerate(new):
        if time.monotonic() > until:
            say(f"{len(new) - index} of {len(cells)} steps of the grid are left: the same command goes on with them")
            break
        rows.append({"cell": name_of(cell), **measure_cell(engine, cell, num_steps)})
        with locked(path.parent):
            write_atomically(path, pd.DataFrame(rows).to_csv(index=False))
    return pd.DataFrame(rows)


def fitting(engine: MeasuredEngine, cells: list[Cell], num_steps: int, say: Say) -> Iterator[Cell]:
    """Those that the engine has room for; of the others it is said why."""
    for cell in cells:
        kind, sizes = cell
        if kind == "mixed":
            num_prompt_tokens, num_cached, num_decodes, context = sizes
            lengths = [num_cached + num_prompt_tokens] + [context + num_steps] * num_decodes
        else:
            lengths = [sizes[1] + (num_steps if kind == "decode" else 0)] * sizes[0]
        reason = why_no_room(engine, lengths)
        if reason:
            say(f"{name_of(cell)}: skipped, {reason}")
        else:
            yield cell


def name_of(cell: Cell) -> str:
    kind, sizes = cell
    return " ".join(map(str, (kind, *sizes)))


def measure_cell(engine: MeasuredEngine, cell: Cell, num_steps: int) -> dict[str, float]:
    """The row of a step log; `elapsed` is unknown, since no scheduler ran."""
    kind, sizes = cell
    adapter_ids = engine.adapter_names(engine.num_adapter_slots) if engine.num_adapter_slots else None
    if kind == "decode":
        num_decodes, context = sizes
        case = measure_decode(engine, num_decodes, context, num_steps, adapter_ids)
        return log_row(case.device, 0, 0, 0, num_decodes, context, adapter_ids)
    if kind == "prefill":
        num_prompts, num_tokens = sizes
        case = measure_prefill(engine, num_prompts, num_tokens, num_steps)
        return log_row(case.device, num_prompts, num_tokens, 0, 0, 0, None)
    num_prompt_tokens, num_cached, num_decodes, context = sizes
    mixed = (num_prompt_tokens, num_cached, num_decodes, context)
    _, device, _ = time_mixed(engine, *mixed, num_steps, adapter_ids)
    return log_row(float(np.median(device)), 1, num_prompt_tokens, num_cached, num_decodes, context, adapter_ids)


def log_row(
    device: float,
    num_prompts: int,
    num_prompt_tokens: int,
    num_cached: int,
    num_decodes: int,
    context: int,
    adapter_ids: list[str] | None,
) -> dict[str, float]:
    """Of a step with prompts of `num_prompt_tokens` each behind `num_cached`, and decodes of `context` tokens each."""
    end = num_cached + num_prompt_tokens
    return {
        "num_seqs": num_prompts + num_decodes,
        "num_prefill_tokens": num_prompts * num_prompt_tokens,
        "num_decode_tokens": num_decodes,
        "num_context_tokens": num_prompts * end + num_decodes * context,
        "num_prefill_pairs": num_prompts * (end * (end + 1) - num_cached * (num_cached + 1)) // 2,
        "num_adapters": min(len(adapter_ids or ()), num_prompts + num_decodes),
        "num_adapter_loads": 0,
        "num_copied_blocks": 0,
        "is_first": 0,
        "device": device,
        "elapsed": np.nan,
        "is_replayed": 0,
    }
