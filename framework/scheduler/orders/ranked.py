"""Waiting sequences by a rank, the lowest first, in a heap; the policies that need no more are functions that make one.

Among equal ranks who came first is first.
"""

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from math import isfinite
from typing import Any

from framework.contracts import Order
from framework.core import Sequence

Rank = Callable[[Sequence], Any]  # what can be compared; it stays as it is, or falls while its sequence runs
Entry = tuple[Any, Sequence]


class Ranked(Order):
    """Sequences by `rank`, of those that wait and, when the KV cache runs out, of those that run: the last gives way.

    With `preempts` a running sequence gives way to a waiting one of lower rank, too. Who has waited `max_wait` seconds
    (None: for ever) since it came, or since it was preempted, ranks before all others until it ends, those that have
    waited so long by their arrival: a starvation guard.
    """

    def __init__(
        self, rank: Rank, *, preempts: bool = False, max_wait: float | None = None, uses: tuple[str, ...] = ()
    ) -> None:
        if max_wait is not None and not (isfinite(max_wait) and max_wait >= 0):
            raise ValueError(f"order.max_wait must be a finite number of seconds, at least 0, or null, not {max_wait}")
        self.rank, self.preempts, self.max_wait, self.uses = rank, preempts, max_wait, uses
        self.heap: list[Entry] = []  # with outdated entries
        self.entries: dict[Sequence, Entry] = {}  # the current one of each waiting sequence
        self.since: deque[tuple[float, Entry]] = deque()  # when each began to wait (s), with outdated ones
        self.overdue: set[Sequence] = set()
        self.unbeaten_by: Sequence | None = None  # who was the first when nobody of the running was behind it
        self.now = 0.0

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Sequence]:
        """Walks down the heap: costs O(log k) for the k-th."""
        heap = self.heap
        nearest = [(heap[0], 0)] if heap else []
        while nearest:
            entry, index = heappop(nearest)
            if self._is_current(entry):
                yield entry[1]
            for child in (2 * index + 1, 2 * index + 2):
                if child < len(heap):
                    heappush(nearest, (heap[child], child))

    def __getitem__(self, index: int) -> Sequence:
        assert index == 0
        while not self._is_current(self.heap[0]):
            heappop(self.heap)
        return self.heap[0][1]

    def append(self, sequence: Sequence) -> None:
        self._push(sequence, sequence.arrival_time)

    def appendleft(self, sequence: Sequence) -> None:
        self.unbeaten_by = None
        self._push(sequence, self.now)

    def popleft(self) -> Sequence:
        first = self[0]
        heappop(self.heap)
        del self.entries[first]
        return first

    def remove(self, sequence: Sequence) -> None:
        del self.entries[sequence]
        self.overdue.discard(sequence)

    def update(self, now: float) -> None:
        self.now = now
        if self.max_wait is not None:
            while self.since and self.since[0][0] + self.max_wait <= now:
                _, entry = self.since.popleft()
                if self._is_current(entry):
                    self.promote(entry[1])

    def served(self, sequences: list[Sequence], num_tokens: int = 1) -> None:
        if self.overdue:
            self.overdue.difference_update([one for one in sequences if one.is_finished])

    def behind(self, first: Sequence, running: list[Sequence]) -> list[Sequence]:
        """Of equal rank nobody gives way, and nobody who has waited too long.

        If nobody does, nobody will as long as it is the first: ranks of those that run never grow, and who joins them
        was before it.
        """
        if not self.preempts or first is self.unbeaten_by:
            return []
        rank, overdue = self.rank, self.overdue
        if first in overdue:
            lower = [one for one in running if one not in overdue]
        else:
            limit = rank(first)
            lower = [one for one in running if rank(one) > limit and one not in overdue]
        if not lower:
            self.unbeaten_by = first
        return sorted(lower, key=self.key, reverse=True)

    def last(self, running: list[Sequence]) -> Sequence:
        return max(running, key=self.key)

    def key(self, sequence: Sequence) -> tuple[Any, ...]:
        """No two have the same."""
        request_id = sequence.request.request_id
        if sequence in self.overdue:
            return False, sequence.arrival_time, request_id
        return True, self.rank(sequence), sequence.arrival_time, request_id

    def promote(self, sequence: Sequence) -> None:
        """It has waited too long."""
        self.overdue.add(sequence)
        self.unbeaten_by = None
        self.place(sequence)

    def place(self, sequence: Sequence) -> Entry:
        """Put it at its place among the waiting, where it may have another one."""
        entry = self.entries[sequence] = (self.key(sequence), sequence)
        heappush(self.heap, entry)
        return entry

    def _push(self, sequence: Sequence, since: float) -> None:
        entry = self.place(sequence)
        if self.max_wait is not None:
            self.since.append((since, entry))

    def _is_current(self, entry: Entry) -> bool:
        return self.entries.get(entry[1]) is entry
