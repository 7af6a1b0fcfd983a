"""Steps in which a part of a prompt rides along with decodes, and prompts in chunks, each against a step of its own.

As in steps.py, over a KV cache of random numbers; steps are launched ahead where the engine does so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle, pairwise

import numpy as np
import pandas as pd

from framework.build import MakeEngine, MakeModel, MakeScheduler, seat_adapters
from framework.config import describe
from framework.core import Batch, Request
from framework.engine.measured import MeasuredEngine
from framework.engine.torch_engine.mixed import check_captured
from framework.measure.cases import Case
from framework.measure.ceilings import Ceilings
from framework.measure.floors import Work, model_costs, step_work
from framework.measure.steps import (
    NUM_WARM_UP_STEPS,
    Say,
    Times,
    check_sizes,
    decode_on,
    first_start,
    least_context,
    make_sequences,
    measure_prefill,
    step_times,
    why_no_room,
)

NUM_PASSES = 3  # in which a prompt's chunks are timed, after one to warm up
FORMS = {
    "mixed": ("prompt tokens", "cached ones before them", "decodes", "context of each"),
    "chunks": ("prompt tokens", "tokens of a chunk"),
}
LEAST = {"mixed": (1, 0, 1, 1), "chunks": (1, 1)}


@dataclass(frozen=True, slots=True)
class Comparison:
    """A mixed step, or all chunks of a prompt, and a step of a prompt alone; times are medians in seconds."""

    kind: str  # mixed or chunks
    sizes: tuple[int, ...]  # as FORMS names them
    works: tuple[Work, ...]  # of every step
    device: float  # of all steps together
    waited: float  # per step: what the device had nothing to do, from one step's tokens to the next one's
    alone: Case  # of as many rows as the mixed step has, or the whole prompt

    @property
    def name(self) -> str:
        return comparison_name(self.kind, self.sizes)

    @property
    def ratio(self) -> float:
        return self.device / self.alone.device

    @property
    def num_flops(self) -> float:
        return sum(work.num_flops for work in self.works)

    def floor(self, ceilings: Ceilings) -> float:
        """The least seconds that all steps can take, one after the other."""
        return sum(work.floor(ceilings.read_bandwidth, ceilings.matmul_rate) for work in self.works)

    def line(self, ceilings: Ceilings) -> str:
        mfu = self.num_flops / self.device / ceilings.matmul_rate
        return (
            f"{self.name}: device {1e3 * self.device:.3f} ms, {self.ratio:.3f}× of {self.alone.name} "
            f"({1e3 * self.alone.device:.3f} ms), floor {1e3 * self.floor(ceilings):.3f} ms, MFU {mfu:.1%}, "
            f"the device waited {1e6 * self.waited:.0f} µs a step"
        )

    def row(self, ceilings: Ceilings) -> dict[str, str | float]:
        """Everything as one row of a table; `mfu` is of the measured rate of matrix products, whatever binds."""
        return {
            "case": self.name,
            "kind": self.kind,
            "num_steps": len(self.works),
            "num_bytes": sum(work.num_bytes for work in self.works),
            "num_flops": self.num_flops,
            "floor": self.floor(ceilings),
            "device": self.device,
            "waited": self.waited,
            "mfu": self.num_flops / self.device / ceilings.matmul_rate,
            "alone": self.alone.name,
            "alone_device": self.alone.device,
            "alone_mfu": self.alone.work.num_flops / self.alone.device / ceilings.matmul_rate,
            "ratio": self.ratio,
        }


def comparison_name(kind: str, sizes: tuple[int, ...]) -> str:
    if kind == "chunks":
        return "{} in chunks of {}".format(*sizes)
    return "mixed {} behind {} + {} × {}".format(*sizes)


def sizes_in(name: str) -> tuple[str, tuple[int, ...]] | None:
    """The kind and the sizes that `name` is the comparison_name of; None if it is none."""
    sizes = tuple(map(int, re.findall(r"\d+", name)))
    for kind, meanings in FORMS.items():
        if len(sizes) == len(meanings) and name == comparison_name(kind, sizes):
            return kind, sizes
    return None


def check_comparisons(sizes: dict[str, list[list[int]]], num_steps: int) -> None:
    """ValueError unless `sizes` maps kinds of FORMS to lists of as many numbers, none too small for `num_steps`."""
    check_sizes({}, num_steps)
    for kind, rows in sizes.items():
        for row in rows:
            if len(row) != len(FORMS[kind]):
                raise ValueError(f"an entry of {kind} is [{', '.join(FORMS[kind])}], not {row}")
            for value, least, meaning in zip(row, LEAST[kind], FORMS[kind], strict=True):
                if value < least:
                    raise ValueError(f"{kind}: {meaning} must be at least {least}, not {value} as in {row}")
            if kind == "chunks" and row[1] >= row[0]:
                raise ValueError(f"chunks: a chunk of {row[1]} tokens is no part of a prompt of {row[0]}")
            if kind == "mixed" and row[3] < least_context(num_steps):
                raise ValueError(
                    f"mixed: a context of {row[3]} tokens, as in {row}, is too short for num_steps={num_steps}: "
                    f"at least {least_context(num_steps)}"
                )


def check_graphs(
    engine: MakeEngine, model: MakeModel, scheduler: MakeScheduler, mixed: list[list[int]], key: str = "scheduler"
) -> None:
    """ValueError for steps of more rows than graphs hold, where `engine` is asked for these by name.

    `TorchEngine.begin` says so too, but only when the model is loaded and others are measured. `key` is where the
    scheduler is in the config.
    """
    if not describe(engine).get("cuda_graphs"):
        return
    for row in mixed:
        num_rows = row[0] + row[2]
        check_captured(f"mixed: a step of {num_rows} tokens, as in {row},", num_rows)
    limits = describe(scheduler)
    if "max_num_batched_tokens" in limits:
        budget, source = limits["max_num_batched_tokens"], ""
        if budget is None:
            budget, source = describe(model)["max_model_len"], " (null: the model's context)"
        if budget is not None:  # null twice: what the model's files say
            check_captured(f"{key}.max_num_batched_tokens={budget}{source}", budget)


def most_seqs(sizes: dict[str, list[list[int]]]) -> int:
    """Sequences of the largest mixed step, its prompt included."""
    return 1 + max((row[2] for row in sizes["mixed"]), default=0)


def measure_comparisons(
    sizes: dict[str, list[list[int]]], engine: MeasuredEngine, num_steps: int, say: Say
) -> Iterator[Comparison]:
    """Measure what fits of `sizes`, kind → rows of numbers as FORMS names them; tell why what does not is skipped."""
    measures: dict[str, Callable[..., Comparison]] = {"mixed": measure_mixed, "chunks": measure_chunks}
    for kind, rows in sizes.items():
        for row in rows:
            reason = why_no_room(engine, lengths_of(kind, row, num_steps))
            if reason:
                say(f"{comparison_name(kind, tuple(row))}: skipped, {reason}")
                continue
            yield measures[kind](engine, *row, num_steps)


def lengths_of(kind: str, sizes: list[int], num_steps: int) -> list[int]:
    """Tokens of every sequence that the steps need room for."""
    if kind == "chunks":
        return [sizes[0]]
    num_prompt_tokens, num_cached, num_decodes, context = sizes
    return [max(num_cached, num_decodes) + num_prompt_tokens] + [context + num_steps] * num_decodes


def measure_mixed(
    engine: MeasuredEngine, num_prompt_tokens: int, num_cached: int, num_decodes: int, context: int, num_steps: int
) -> Comparison:
    """Time a mixed step, as `time_mixed` says, and a step that computes a prompt of as many tokens as it has rows."""
    sizes = (num_prompt_tokens, num_cached, num_decodes, context)
    work, device, elapsed = time_mixed(engine, *sizes, num_steps)
    alone = measure_prefill(engine, 1, num_prompt_tokens + num_decodes, num_steps)
    return Comparison("mixed", sizes, (work,), float(np.median(device)), float(np.median(elapsed - device)), alone)


def time_mixed(
    engine: MeasuredEngine,
    num_prompt_tokens: int,
    num_cached: int,
    num_decodes: int,
    context: int,
    num_steps: int,
    adapter_ids: list[str] | None = None,
) -> tuple[Work, Times, Times]:
    """The last `num_prompt_tokens` of a prompt, `num_cached` before them, in a step with `num_decodes` decodes.

    These have `context` tokens each in the middle one of the `num_steps` timed, and advance by one token per step. The
    prompt and they ask in turn for `adapter_ids` (None: for none). Returns the work of the middle step; then of every
    step the seconds on the device, and the seconds since the tokens of the step before.
    """
    first, num_all = first_start(context, num_steps), NUM_WARM_UP_STEPS + num_steps
    names = cycle(adapter_ids or [None])
    prompt = Request(0, 0.0, num_cached + num_prompt_tokens, 0, adapter_id=next(names))
    decodes = [Request(1 + index, 0.0, first, num_all + 1, adapter_id=next(names)) for index in range(num_decodes)]
    # Their prompts are never computed, so nothing of that length has to be warm
    requests = [prompt, *(replace(request, num_prompt_tokens=1) for request in decodes)]
    engine.begin(requests, 1 + num_decodes, num_prompt_tokens + num_decodes)
    prefilling, *decoding = sequences = make_sequences(engine, [prompt, *decodes])
    decode_on(decoding)
    batches = [
        Batch(
            [*decoding, prefilling],
            [first + step] * num_decodes + [num_cached],
            [1] * num_decodes + [num_prompt_tokens],
            num_prompt_tokens,
            num_decodes,
        )
        for step in range(num_all)
    ]
    batches[0].adapter_loads = seat_adapters(engine, sequences)
    device, elapsed = (times[NUM_WARM_UP_STEPS:] for times in step_times(engine, batches))
    middle = batches[NUM_WARM_UP_STEPS + num_steps // 2]
    return step_work(model_costs(engine.model, engine.kv_dtype), middle), device, elapsed


def measure_chunks(engine: MeasuredEngine, num_prompt_tokens: int, num_chunk_tokens: int, num_steps: int) -> Comparison:
    """A prompt in one step, then in chunks, each behind those before it: in turns, so that a drift meets both.

    NUM_PASSES times; `num_steps` is for steps of one kind.
    """
    request = Request(0, 0.0, num_prompt_tokens, 0)
    engine.begin([request], 1)
    sequences = make_sequences(engine, [request])
    borders = [*range(0, num_prompt_tokens, num_chunk_tokens), num_prompt_tokens]
    spans = [(0, num_prompt_tokens), *pairwise(borders)]
    batches = [Batch(sequences, [start], [end - start], end - start, 0) for start, end in spans]
    times = step_times(engine, batches * (1 + NUM_PASSES))
    device, elapsed = (each.reshape(1 + NUM_PASSES, len(batches))[1:] for each in times)
    costs = model_costs(engine.model, engine.kv_dtype)
    work, *works = (
        step_work(costs, batch, num_sampled=int(end == num_prompt_tokens))
        for batch, (_, end) in zip(batches, spans, strict=True)
    )
    alone = Case("prefill", 1, num_prompt_tokens, work, *(float(np.median(each[:, 0])) for each in (device, elapsed)))
    together = float(np.median(device[:, 1:].sum(axis=1)))
    waited = float(np.median((elapsed - device)[:, 1:]))
    return Comparison("chunks", (num_prompt_tokens, num_chunk_tokens), tuple(works), together, waited, alone)


def comparisons_table(comparisons: pd.DataFrame) -> pd.DataFrame:
    """One row per comparison: times (ms), the ratio, MFU (%), and what the device waited (µs a step)."""
    return pd.DataFrame(
        {
            "steps": comparisons["case"],
            "device (ms)": 1e3 * comparisons["device"],
            "floor (ms)": 1e3 * comparisons["floor"],
            "MFU (%)": 100 * comparisons["mfu"],
            "against": comparisons["alone"],
            "its device (ms)": 1e3 * comparisons["alone_device"],
            "its MFU (%)": 100 * comparisons["alone_mfu"],
            "ratio": comparisons["ratio"],
            "device waited (µs a step)": 1e6 * comparisons["waited"],
        }
    )
