"""The steps of a server as they are kept: one by one, or a run of decode steps as the little that differs in it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.core import Growth, Step

Integers = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[Any]]

FIELDS = tuple(field.name for field in fields(Step))
get_fields = attrgetter(*FIELDS)


@dataclass(slots=True)
class StepRun:
    """Decode steps of the same sequences one behind the other: times in seconds, one each; `first` is the first one.

    What its memory does follows from `growth`.
    """

    first: Step
    start_times: list[float]
    elapsed: list[float]
    device: list[float]
    growth: Growth

    def __len__(self) -> int:
        return len(self.start_times)

    @property
    def num_output_tokens(self) -> int:
        """Of all of them."""
        return len(self) * self.first.num_output_tokens

    def __iter__(self) -> Iterator[Step]:
        columns = varying([self])
        for values in zip(*(column.tolist() for column in columns.values()), strict=True):
            yield replace(self.first, **dict(zip(columns, values, strict=True)))


class StepLog:
    """Steps in their order."""

    def __init__(self) -> None:
        self.entries: list[Step | StepRun] = []
        self.num_steps = 0

    def append(self, step: Step) -> None:
        self.entries.append(step)
        self.num_steps += 1

    def append_run(self, run: StepRun) -> None:
        self.entries.append(run)
        self.num_steps += len(run)

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[Step]:
        for entry in self.entries:
            if isinstance(entry, StepRun):
                yield from entry
            else:
                yield entry

    def columns(self) -> Columns:
        """One column per field of Step."""
        return columns_of(self.entries)


def columns_of(entries: Iterable[Step | StepRun]) -> Columns:
    """One column per field of Step; those of runs are made for all of them at once."""
    runs = [entry for entry in entries if isinstance(entry, StepRun)]
    firsts = [entry.first if isinstance(entry, StepRun) else entry for entry in entries]
    lengths = [len(entry) if isinstance(entry, StepRun) else 1 for entry in entries]
    values = zip(*map(get_fields, firsts), strict=True) if firsts else [()] * len(FIELDS)
    columns = {
        name: np.repeat(np.array(column, dtype=object if name == "phase" else None), lengths)
        for name, column in zip(FIELDS, values, strict=True)
    }
    if runs:
        is_of_run = np.repeat([isinstance(entry, StepRun) for entry in entries], lengths)
        for name, column in varying(runs).items():
            columns[name][is_of_run] = column
    return columns


def varying(runs: list[StepRun]) -> Columns:
    """The columns in which the steps of a run differ, of all runs one behind the other.

    Blocks with unknown contents are taken before any is evicted from a prefix cache.
    """
    lengths = np.array([len(run) for run in runs])
    ends = lengths.cumsum()
    index = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)  # in its run

    def first(values: Iterable[int]) -> Integers:
        return np.repeat(np.fromiter(values, np.int64, len(runs)), lengths)

    def so_far(changes: Iterable[list[tuple[int, int]]]) -> Integers:
        """The sum of what (step, change) pairs say, before each step; what the last step brings is behind the run."""
        places, amounts = [], []
        for start, length, pairs in zip((ends - lengths).tolist(), lengths.tolist(), changes, strict=True):
            for step, amount in pairs:
                if step + 1 < length:
                    places.append(start + step + 1)
                    amounts.append(amount)
        change = np.bincount(places, amounts, minlength=ends[-1]).astype(np.int64) if places else np.zeros_like(index)
        total = change.cumsum()
        return total - np.repeat(total[ends - lengths], lengths)  # nothing changes before a run's first step

    growths = [run.growth for run in runs]
    size = first(growth.block_size for growth in growths)
    num_taken = so_far([[(step, 1) for step in growth.taken_at] for growth in growths])
    num_lost = so_far([growth.lost_at for growth in growths])
    num_evicted = np.maximum(num_taken - first(growth.num_empty for growth in growths), 0)
    num_computed = index * first(run.first.num_seqs for run in runs)
    return {
        "start_time": np.fromiter(chain.from_iterable(run.start_times for run in runs), float, ends[-1]),
        "elapsed": np.fromiter(chain.from_iterable(run.elapsed for run in runs), float, ends[-1]),
        "device": np.fromiter(chain.from_iterable(run.device for run in runs), float, ends[-1]),
        "num_context_tokens": first(run.first.num_context_tokens for run in runs) + num_computed,
        "num_used_blocks": first(run.first.num_used_blocks for run in runs) + num_taken,
        "num_cached_blocks": first(run.first.num_cached_blocks for run in runs) - num_evicted,
        "num_token_slots": first(run.first.num_token_slots for run in runs) + num_computed,
        "num_reserved_slots": first(run.first.num_reserved_slots for run in runs)
        + num_taken * size
        - num_computed
        - num_lost,
        "num_lost_slots": first(run.first.num_lost_slots for run in runs) + num_lost,
        "num_free_slots": first(run.first.num_free_slots for run in runs) - (num_taken - num_evicted) * size,
    }
