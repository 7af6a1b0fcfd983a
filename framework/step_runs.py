"""Steps as a server keeps them: one by one, or a run of decode steps as the little that differs in it; then columns."""

from collections.abc import Iterable
from collections.abc import Sequence as ListOf
from dataclasses import dataclass, fields
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from framework.core import Step

Integers = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[Any]]

FIELDS = tuple(field.name for field in fields(Step))
OBJECTS = ("phase", "adapter_waits")  # of these fields
KEPT = 4096  # steps of a log that are not made columns yet
get_fields = attrgetter(*FIELDS)


class Growth(NamedTuple):
    """What KV memory does in a run of steps: each time that `schedule` is called, from 0 on, sequences may take blocks.

    `taken_at` has the call of each block, in order, and `lost_at` those in which slots got lost, with their number.
    Blocks of `block_size` tokens that hold nothing, `num_empty` of them before, are taken first.
    """

    taken_at: list[int]
    lost_at: list[tuple[int, int]]
    block_size: int
    num_empty: int


@dataclass(slots=True)
class StepRun:
    """Decode steps of the same sequences one behind the other: times in seconds, one each; `first` is the first one.

    What its memory does follows from `growth`.
    """

    first: Step
    start_times: list[float]
    elapsed: list[float]
    prepare: list[float]
    device: list[float]
    growth: Growth

    def __len__(self) -> int:
        return len(self.start_times)

    @property
    def num_output_tokens(self) -> int:
        """Of all of them."""
        return len(self) * self.first.num_output_tokens


class StepLog:
    """The entries of a server, in their order; those before the last KEPT steps are columns, which take less memory."""

    def __init__(self) -> None:
        self.num_entries = 0
        self.num_kept = 0  # steps in the entries below
        self.entries: list[Step | StepRun] = []  # that are not among the columns yet
        self.blocks: list[Columns] = []

    def append(self, entry: Step | StepRun) -> None:
        self.num_entries += 1
        self.entries.append(entry)
        self.num_kept += len(entry) if isinstance(entry, StepRun) else 1
        if self.num_kept >= KEPT:
            self.make_columns()

    def make_columns(self) -> None:
        """Of the entries that are none yet."""
        self.blocks.append({name: narrowed(column) for name, column in columns_of(self.entries).items()})
        self.entries, self.num_kept = [], 0

    def take_blocks(self) -> list[Columns]:
        """All of them as columns, one block behind the other; the log is empty then."""
        if self.entries or not self.blocks:
            self.make_columns()
        blocks, self.blocks, self.num_entries = self.blocks, [], 0
        return blocks

    def __len__(self) -> int:
        return self.num_entries

    @property
    def steps(self) -> list[Step]:
        """One by one."""
        return steps_in(self.columns()) if self.blocks else steps_of(self.entries)

    def columns(self) -> Columns:
        """One per field of Step."""
        blocks = [*self.blocks, columns_of(self.entries)] if self.entries or not self.blocks else self.blocks
        return {name: joined([block[name] for block in blocks]) for name in FIELDS}


def narrowed(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """In less memory: one value for all, and whole numbers in as few bytes as the largest needs, if none is below 0."""
    if not len(column):
        return column
    if column.dtype == np.int64 and column.min() >= 0 and column.max() < 1 << 32:
        column = column.astype(np.min_scalar_type(column.max()))
    return np.broadcast_to(column[:1].copy(), column.shape) if is_constant(column) else column


def is_constant(column: npt.NDArray[Any]) -> bool:
    """Whether all values are the first one, objects the same one."""
    if column.dtype == object:
        return all(value is column[0] for value in column)
    return column.strides == (0,) or bool((column == column[0]).all())


def joined(columns: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One behind the other, whole numbers as they were before they were narrowed."""
    are_whole = all(column.dtype.kind in "iu" for column in columns)
    return np.concatenate(columns, dtype=np.int64 if are_whole else None)


def steps_of(entries: ListOf[Step | StepRun]) -> list[Step]:
    """One by one, those of runs too."""
    steps = [entry for entry in entries if not isinstance(entry, StepRun)]
    if len(steps) == len(entries):
        return steps
    return steps_in(columns_of(entries))


def steps_in(columns: Columns) -> list[Step]:
    """One per row."""
    return list(map(Step, *(column.tolist() for column in columns.values())))


def columns_of(entries: ListOf[Step | StepRun]) -> Columns:
    """One column per field of Step; those of runs are made for all of them at once."""
    runs = [entry for entry in entries if isinstance(entry, StepRun)]
    firsts = [entry.first if isinstance(entry, StepRun) else entry for entry in entries]
    lengths = [len(entry) if isinstance(entry, StepRun) else 1 for entry in entries]
    values = zip(*map(get_fields, firsts), strict=True) if firsts else [()] * len(FIELDS)
    columns = {
        name: np.repeat(np.fromiter(column, object, len(firsts)) if name in OBJECTS else np.array(column), lengths)
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
        "prepare": np.fromiter(chain.from_iterable(run.prepare for run in runs), float, ends[-1]),
        "device": np.fromiter(chain.from_iterable(run.device for run in runs), float, ends[-1]),
        "num_context_tokens": first(run.first.num_context_tokens for run in runs) + num_computed,
        "max_context_tokens": first(run.first.max_context_tokens for run in runs) + index,
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
