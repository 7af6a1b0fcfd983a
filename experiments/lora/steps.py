"""Decode and mixed steps of arms with adapters and without: measured in rounds, in which the arms take turns."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.peers import PeerRun
from framework.build import MakeEngine, at_most, num_blocks_for
from framework.core import Request
from framework.engine.measured import MeasuredEngine, measured
from framework.measure.mixed_steps import check_comparisons, comparison_name, lengths_of, time_mixed
from framework.measure.steps import Say, check_sizes, get_ready, measure_decode, why_no_room, why_not
from framework.study.arms import Arm
from framework.study.engine_cache import EngineCache
from framework.study.files import GrowingTable
from framework.study.place import Place


@dataclass(frozen=True, slots=True)
class Sizes:
    """Which steps to time; `mixes`: what to add to an arm's name → how many adapters are asked for in turn.

    `mixed` are [prompt tokens, cached ones before them, decodes, context of each].
    """

    batch_sizes: list[int]
    mixed: list[list[int]]
    mixes: dict[str, int]
    context: int  # tokens
    num_steps: int
    num_rounds: int

    def __post_init__(self) -> None:
        check_sizes({"decode": [[batch_size, self.context] for batch_size in self.batch_sizes]}, self.num_steps)
        check_comparisons({"mixed": self.mixed}, self.num_steps)
        if self.num_rounds < 1:
            raise ValueError(f"num_rounds {self.num_rounds} must be at least 1")

    @property
    def max_num_seqs(self) -> int:
        return max([*self.batch_sizes, *(1 + row[2] for row in self.mixed)])

    def limited(self, engine: MakeEngine) -> MakeEngine:
        """An engine whose cache holds the largest step and no more, where its size is left to the engine."""
        num_tokens = self.context + self.num_steps
        steps = [[num_tokens] * size for size in self.batch_sizes]
        steps += [lengths_of("mixed", row, self.num_steps) for row in self.mixed]
        return at_most(engine, max(sum(num_blocks_for(engine, 1, length) for length in step) for step in steps))


def measure_rounds(
    arms: dict[str, Arm], engines: EngineCache, sizes: Sizes, place: Place, steps: GrowingTable
) -> PeerRun:
    """Add one row per round, arm, mix and step: `case`, `num_seqs`, `num_adapters`, seconds `device` and `elapsed`.

    What a peer needs to run steps of the same shape.
    """
    with place.status("") as update:
        for index in range(sizes.num_rounds):
            say: Say = place.say if index == 0 else lambda message: None
            for arm, components in arms.items():
                engines.on_progress = update
                update(f"{arm}, round {index + 1} of {sizes.num_rounds}")
                rows = measure_steps(arm, measured(engines.get(components)), sizes, say)  # keeps no engine
                steps.add({"round": index} | row for row in rows)
    assert engines.engine is not None
    engine = measured(engines.engine)
    return PeerRun(engine.model.config, engine.dtype, engines.device.type, [([1] * sizes.context, 1)])


def measure_steps(arm: str, engine: MeasuredEngine, sizes: Sizes, say: Say) -> Iterator[dict[str, object]]:
    """The rows of one arm; adapters and sizes that its engine cannot hold are told and left out."""
    get_ready(engine, sizes.max_num_seqs)
    for suffix, num_adapters in sizes.mixes.items() if engine.num_adapter_slots else [("", 0)]:
        try:
            adapter_ids = adapters_to_time(engine, num_adapters)
        except ValueError as error:
            say(f"{arm}{suffix}: no steps, {error}")
            continue
        for row in measure_sizes(arm, engine, sizes, adapter_ids, say):
            yield {"arm": arm + suffix, "num_adapters": min(num_adapters, row["num_seqs"])} | row


def measure_sizes(
    arm: str, engine: MeasuredEngine, sizes: Sizes, adapter_ids: list[str], say: Say
) -> Iterator[dict[str, Any]]:
    """A row for every decode step, then for every mixed one; what does not fit is told."""
    for size in sizes.batch_sizes:
        reason = why_not("decode", engine, size, sizes.context + sizes.num_steps, min(size, len(adapter_ids)))
        if reason:
            say(f"{arm}, batch {size}: skipped, {reason}")
            continue
        case = measure_decode(engine, size, sizes.context, sizes.num_steps, adapter_ids)
        yield {"case": case.name, "num_seqs": size, "device": case.device, "elapsed": case.elapsed}
    for row in sizes.mixed:
        name = comparison_name("mixed", tuple(row))
        lengths = lengths_of("mixed", row, sizes.num_steps)
        reason = why_no_room(engine, lengths, min(len(lengths), len(adapter_ids)))
        if reason:
            say(f"{arm}, {name}: skipped, {reason}")
            continue
        num_prompt_tokens, num_cached, num_decodes, context = row
        _, device, elapsed = time_mixed(
            engine, num_prompt_tokens, num_cached, num_decodes, context, sizes.num_steps, adapter_ids
        )
        times = {"device": float(np.median(device)), "elapsed": float(np.median(elapsed))}
        yield {"case": name, "num_seqs": 1 + num_decodes} | times


def adapters_to_time(engine: MeasuredEngine, num_adapters: int) -> list[str]:
    """The ids of so many adapters; ValueError if there are fewer, or one of them cannot be served."""
    adapter_ids = engine.adapter_names(num_adapters)
    refused = engine.refused_adapters([Request(0, 0.0, 1, 1, adapter_id=adapter_id) for adapter_id in adapter_ids])
    if refused:
        raise ValueError(f"{len(refused)} adapters fail: {next(iter(refused.values()))}")
    return adapter_ids


def median_steps(steps: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Median seconds `elapsed` per arm, case and `num_seqs` over the rounds, of steps whose case begins with `kind`."""
    rows = steps[steps["case"].str.startswith(kind)]
    return rows.groupby(["arm", "case", "num_seqs"], sort=False, as_index=False)["elapsed"].median()


def growth(medians: pd.DataFrame) -> pd.DataFrame:
    """Per arm and batch size, ms from one decode step to the next, and the last over the first."""
    table = 1e3 * medians.pivot_table(index="arm", columns="num_seqs", values="elapsed", sort=False)
    first, last = table.columns[0], table.columns[-1]
    ratio = {f"{last} ÷ {first}": table[last] / table[first]} if last != first else {}
    return table.assign(**ratio).rename(columns=str).reset_index()


def mixed_table(medians: pd.DataFrame, base: str) -> pd.DataFrame:
    """One row per mixed step and arm: ms from one such step to the next, and what is more than the arm `base`'s (%)."""
    alone = medians[medians["arm"] == base].set_index("case")["elapsed"]
    more = medians["elapsed"] / medians["case"].map(alone) - 1
    table = (
        medians[["case", "arm"]]
        .rename(columns={"case": "step"})
        .assign(**{"step to step (ms)": 1e3 * medians["elapsed"]})
    )
    return table.assign(**{f"more than {base} (%)": 1e2 * more}) if len(alone) else table
