"""Single steps on a grid, as rows of a step log: decodes, whole prompts, and parts of prompts beside decodes."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd

from framework.core import Batch, Request, Sequence
from framework.cost.step_log import WAITED
from framework.engine.measured import MeasuredEngine
from framework.measure.mixed_steps import check_comparisons
from framework.measure.steps import Say, check_sizes, decode_on, get_ready, take_steps, why_no_room
from framework.study.files import locked, write_atomically

NUM_WARM_UP_STEPS = 2  # the first brings block tables to the device, and the host is ahead from the second on
DENSE = 64  # sequences up to which every size of a graph is timed; beyond, every other one
SAVED_EVERY = 2.0  # seconds
GOLDEN = (5**0.5 - 1) / 2  # whose multiples, less whole numbers, are spread evenly

Size = TypeVar("Size")
Variant = TypeVar("Variant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is timed apart from replays, `num_steps` steps of each.

    `decode` are sequences (None: as many sizes as the engine tells apart), with every one of `contexts` tokens each, in
    the mean; `prefill` [prompts, tokens each]; `mixed` [prompt tokens, cached before them, decodes, context of each].
    Where adapters are served, each of these with every one of `num_adapters` different ones, as far as there are.
    """

    decode: list[int] | None
    contexts: list[int]
    prefill: list[list[int]]
    mixed: list[list[int]]
    num_adapters: list[int]
    num_steps: int


class Cell(NamedTuple):
    """A step: prompts of `num_tokens` each behind `num_cached`, and decodes of `context` tokens in the mean."""

    num_prompts: int
    num_tokens: int
    num_cached: int
    num_decodes: int
    context: int
    num_adapters: int  # different ones

    @property
    def num_seqs(self) -> int:
        return self.num_prompts + self.num_decodes

    @property
    def name(self) -> str:
        prompts = f"{self.num_prompts} × {self.num_tokens} behind {self.num_cached}" if self.num_prompts else ""
        decodes = f"{self.num_decodes} decodes of {self.context}" if self.num_decodes else ""
        adapters = f"{self.num_adapters} adapters" if self.num_adapters else ""
        return ", ".join(part for part in (prompts, decodes, adapters) if part)


def check_grid(grid: Grid) -> None:
    """ValueError for sizes that no step has."""
    pairs = [[size, context] for size in grid.decode or [1] for context in grid.contexts]
    check_sizes({"decode": pairs, "prefill": grid.prefill}, grid.num_steps)
    check_comparisons({"mixed": grid.mixed}, 1)
    for num_adapters in grid.num_adapters:
        if num_adapters < 1:
            raise ValueError(f"grid.num_adapters={grid.num_adapters}: a step with adapters has at least 1")


def cells_of(grid: Grid, sizes: dict[str, list[int]], max_num_seqs: int, num_slots: int) -> list[Cell]:
    """In an order in which the first ones, however many, cover all sizes evenly.

    First every size once, with contexts and numbers of adapters in turn, then every size with the next ones.
    """
    powers = [1 << bit for bit in range(max_num_seqs.bit_length())]
    captured = [size for index, size in enumerate(sizes.get("decode", [])) if size <= DENSE or index % 2]
    decode = sorted(grid.decode or {*(captured or powers), max_num_seqs})
    adapters = sorted({min(num, num_slots) for num in grid.num_adapters}) if num_slots else [0]
    variants = [(context, num) for num in adapters for context in grid.contexts]
    placed = [(turn, Cell(0, 0, 0, size, *variant)) for turn, size, variant in rounds(decode, variants)]
    for turn, (num_prompts, num_tokens), num in rounds(sorted(grid.prefill), adapters):
        placed.append((turn, Cell(num_prompts, num_tokens, 0, 0, 0, num)))
    for turn, (num_tokens, num_cached, num_decodes, context), num in rounds(sorted(grid.mixed), adapters):
        placed.append((turn, Cell(1, num_tokens, num_cached, num_decodes, context, num)))
    ordered = [cell for _, cell in sorted(placed, key=lambda pair: pair[0])]
    return list(dict.fromkeys(cell._replace(num_adapters=min(cell.num_adapters, cell.num_seqs)) for cell in ordered))


def rounds(sizes: list[Size], variants: list[Variant]) -> list[tuple[float, Size, Variant]]:
    """Every size with every variant: in each round all sizes, far ones first, and neighbours with other variants.

    The first of each is when its turn is: from 0 to 1 in the first round, and so on.
    """
    spread = sorted(range(len(sizes)), key=lambda index: f"{index:016b}"[::-1])
    return [
        (turn + place / len(sizes), sizes[index], variants[(index + turn) % len(variants)])
        for turn in range(len(variants))
        for place, index in enumerate(spread)
    ]


def measure_cells(
    engine: MeasuredEngine, cells: list[Cell], num_steps: int, max_num_seqs: int, path: Path, seconds: float, say: Say
) -> pd.DataFrame:
    """A row per cell, those in the CSV at `path` as they are; others are timed and added to it, for at most `seconds`.

    What does not fit the engine is skipped, and said so, and so is what is left when the time is over.
    """
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    known = {row["cell"] for row in rows}
    new = [cell for cell in fitting(engine, cells, num_steps, max_num_seqs, say) if cell.name not in known]
    if not new:
        return pd.DataFrame(rows)
    get_ready(engine, max_num_seqs, longest_prompt=max(1, *(cell.num_tokens for cell in new)))
    bench = Bench(engine)
    started = saved = time.monotonic()
    for index, cell in enumerate(new):
        now = time.monotonic()
        if now > started + seconds:
            say(f"{len(new) - index} of {len(cells)} steps of the grid are left: the same command goes on with them")
            break
        rows.append({"cell": cell.name, **bench.measure(cell, num_steps)})
        if now > saved + SAVED_EVERY:
            saved = now
            save(path, rows)
    save(path, rows)
    return pd.DataFrame(rows)


def save(path: Path, rows: list[dict[str, object]]) -> None:
    with locked(path.parent):
        write_atomically(path, pd.DataFrame(rows).to_csv(index=False))


def fitting(engine: MeasuredEngine, cells: list[Cell], num_steps: int, max_num_seqs: int, say: Say) -> Iterator[Cell]:
    """Those that the engine has room for; of the others it is said why."""
    for cell in cells:
        reason = f"more than {max_num_seqs} sequences" if cell.num_seqs > max_num_seqs else ""
        reason = reason or why_no_room(engine, lengths_of(cell, NUM_WARM_UP_STEPS + num_steps))
        if reason:
            say(f"{cell.name}: skipped, {reason}")
        else:
            yield cell


def starts_of(cell: Cell) -> list[int]:
    """Where the decodes' first steps are: from 0 to twice the context, mixed as on a server."""
    places = (0.5 + GOLDEN * np.arange(cell.num_decodes)) % 1
    starts: list[int] = np.maximum(1, 2 * cell.context * places).astype(int).tolist()
    return starts


def lengths_of(cell: Cell, num_steps: int) -> list[int]:
    """Tokens of every sequence that a cell's steps need room for: decodes, then prompts."""
    prompts = [cell.num_cached + cell.num_tokens] * cell.num_prompts
    return [start + num_steps for start in starts_of(cell)] + prompts


class Bench:
    """Times cells on an engine that is ready for them; sequences take its blocks in an order as on an old server."""

    def __init__(self, engine: MeasuredEngine) -> None:
        self.engine = engine
        self.blocks = np.random.default_rng(0).permutation(engine.num_blocks)
        names = engine.adapter_names(engine.num_adapter_slots) if engine.num_adapter_slots else []
        self.loads = {slot + 1: name for slot, name in enumerate(names)}  # of the first step
        self.num_sequences = 0

    def measure(self, cell: Cell, num_steps: int) -> dict[str, float]:
        """The row of a step log; `elapsed` is unknown, since no scheduler ran.

        `device` is unknown where the host's work, `launch` (s), took as long as a whole step, `period`, which then is
        `host`.
        """
        batches = self.batches(cell, NUM_WARM_UP_STEPS + num_steps)
        batches[0].adapter_loads, self.loads = self.loads, {}
        results, periods = take_steps(self.engine, batches)
        timed = results[NUM_WARM_UP_STEPS:]
        device = float(np.median([result.device for result in timed]))
        launch = float(np.median([result.prepare + result.launch for result in timed]))
        period = float(np.median(periods[NUM_WARM_UP_STEPS:]))
        is_hidden = self.engine.num_steps_ahead > 0 and period < WAITED * launch
        row = log_row(batches[NUM_WARM_UP_STEPS + num_steps // 2], np.nan if is_hidden else device)
        row |= {"num_adapters": cell.num_adapters, "host": period if is_hidden else np.nan}
        return row | {"launch": launch, "period": period}

    def batches(self, cell: Cell, num_steps: int) -> list[Batch]:
        lengths, starts, num_decodes = lengths_of(cell, num_steps), starts_of(cell), cell.num_decodes
        ends = np.cumsum([-(-length // self.engine.block_size) for length in lengths])
        sequences = []
        for index, (length, end) in enumerate(zip(lengths, ends, strict=True)):
            num_tokens = starts[index] if index < num_decodes else length
            sequence = Sequence(Request(self.num_sequences, 0.0, num_tokens, num_steps + 1))
            self.num_sequences += 1
            self.engine.add(sequence)
            sequence.adapter_slot = 1 + index % cell.num_adapters if cell.num_adapters else 0
            sequence.block_table = self.blocks[end - -(-length // self.engine.block_size) : end].tolist()
            sequences.append(sequence)
        decode_on(sequences[:num_decodes])
        num_new = cell.num_prompts * cell.num_tokens
        sizes = [1] * num_decodes + [cell.num_tokens] * cell.num_prompts
        behind = [cell.num_cached] * cell.num_prompts
        return [
            Batch(sequences, [start + step for start in starts] + behind, sizes, num_new, num_decodes)
            for step in range(num_steps)
        ]


def log_row(batch: Batch, device: float) -> dict[str, float]:
    """What a step log says of a step that was timed alone, without adapters."""
    return {
        "num_seqs": len(batch.sequences),
        "num_prefill_tokens": batch.num_prefill_tokens,
        "num_decode_tokens": batch.num_decode_tokens,
        "num_context_tokens": batch.num_context_tokens,
        "max_context_tokens": batch.max_context_tokens,
        "num_prefill_pairs": batch.num_prefill_pairs,
        "num_adapters": 0,
        "num_adapter_loads": 0,
        "num_copied_blocks": 0,
        "is_first": 0,
        "device": device,
        "elapsed": np.nan,
        "host": np.nan,
        "is_replayed": 0,
    }
