"""Whose requests are admitted: adapters take turns, a time slice each (LoRAX's `adapter_cycle_time_s`).

What runs when a turn ends runs on and holds its adapter's slot; the next turn begins when a slot is free.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from heapq import merge
from itertools import chain, count
from math import inf

from framework.core import Sequence

Place = tuple[int, int, Sequence]  # when the sequence was put into its queue, its rank among all, and itself


class AdapterTurns:
    """Waiting sequences in the order of service, as a deque: those whose turn it is, then by the turns to come.

    Up to `max_loras` adapters have their turn, each for `cycle_time` seconds, or longer while no other one waits.
    Requests without an adapter need no turn. Who came first stays first among those of one adapter, and among all that
    have their turn. A call costs at most O(adapters), and an update what came since the one before.
    """

    def __init__(self, max_loras: int, cycle_time: float) -> None:
        if not cycle_time > 0:
            raise ValueError(f"adapter_cycle_time must be a positive number of seconds, not {cycle_time}")
        self.max_loras, self.cycle_time = max_loras, cycle_time
        self.since: dict[str, float] = {}  # adapters that have their turn → when it began (s), the oldest first
        self.upcoming: dict[str, None] = {}  # adapters that wait for theirs, in this order
        self.queues: dict[str | None, deque[Place]] = {}  # by adapter; none is empty
        self.ranks: dict[str | None, int] = {}  # of what waited for an adapter when its turn began
        self.stamps = count(1)
        self.preempted: deque[Sequence] = deque()  # since the last update: before all others
        self.arrived: deque[Sequence] = deque()  # since the last update: behind all others
        self.num_waiting = 0

    def __len__(self) -> int:
        return self.num_waiting

    def __contains__(self, sequence: object) -> bool:
        return any(one is sequence for one in self)

    def __iter__(self) -> Iterator[Sequence]:
        active = merge(*(self._ranked(one) for one in (None, *self.since)), key=lambda place: place[0])
        upcoming = chain.from_iterable(self._ranked(one) for one in self.upcoming)
        queued = (sequence for _, sequence in chain(active, upcoming))
        return chain(self.preempted, queued, self.arrived)

    def __getitem__(self, index: int) -> Sequence:
        """The first; others only by iteration."""
        assert index == 0
        queue = None if self.preempted else self._first_queue()
        return queue[0][2] if queue else next(iter(self))

    def append(self, sequence: Sequence) -> None:
        self.arrived.append(sequence)
        self.num_waiting += 1

    def appendleft(self, sequence: Sequence) -> None:
        self.preempted.appendleft(sequence)
        self.num_waiting += 1

    def popleft(self) -> Sequence:
        first = self[0]
        self.remove(first)
        return first

    def remove(self, sequence: Sequence) -> None:
        """Costs O(1) of the first of its queue, else its length."""
        adapter_id = sequence.request.adapter_id
        queue = self.queues.get(adapter_id, deque())
        if queue and queue[0][2] is sequence:
            queue.popleft()
        elif sequence in self.preempted:
            self.preempted.remove(sequence)
        elif sequence in self.arrived:
            self.arrived.remove(sequence)
        else:
            queue.remove(next(place for place in queue if place[2] is sequence))
        if adapter_id in self.queues and not queue:
            del self.queues[adapter_id]
        self.num_waiting -= 1

    def refill(self, sequences: Iterable[Sequence]) -> None:
        """Have these wait in the place of all others, in this order; costs their number."""
        self.queues.clear()
        self.preempted.clear()
        self.arrived = deque(sequences)
        self.num_waiting = len(self.arrived)

    def has_turn(self, sequence: Sequence) -> bool:
        adapter_id = sequence.request.adapter_id
        return adapter_id is None or adapter_id in self.since

    def update(self, in_use: Collection[str], now: float) -> None:
        """End and begin turns at `now` (s), and put what came in its place. `in_use`: adapters of running sequences."""
        came = dict.fromkeys(sequence.request.adapter_id for sequence in chain(self.preempted, self.arrived))
        wanted = {*self.queues, *came}
        self.since = {one: began for one, began in self.since.items() if one in wanted or one in in_use}
        self.upcoming = {one: None for one in self.upcoming if one in wanted}
        self.upcoming |= dict.fromkeys(one for one in came if one is not None and one not in self.since)
        before = set(self.since)
        self._end(wanted, in_use, now)
        self._begin(in_use, now)
        self.ranks = {one: self.ranks[one] if one in before else next(self.stamps) for one in self.since}
        self._settle()

    def _first_queue(self) -> deque[Place] | None:
        """That of the first among those who have their turn."""
        first, lowest = None, inf
        for adapter_id in (None, *self.since):
            queue = self.queues.get(adapter_id)
            if queue:
                stamp, rank, _ = queue[0]
                began = self.ranks.get(adapter_id, 0)
                rank = rank if stamp > began else began
                if rank < lowest:
                    first, lowest = queue, rank
        return first

    def _ranked(self, adapter_id: str | None) -> Iterator[tuple[int, Sequence]]:
        """(rank, sequence) of an adapter's queue, in order; what waited when its turn began has the turn's rank."""
        began = self.ranks.get(adapter_id, 0)
        for stamp, rank, sequence in self.queues.get(adapter_id, ()):
            yield (rank if stamp > began else began), sequence

    def _settle(self) -> None:
        """Into the queues: what was preempted to their front, what arrived to their end."""
        while self.preempted:
            sequence, stamp = self.preempted.pop(), next(self.stamps)
            self.queues.setdefault(sequence.request.adapter_id, deque()).appendleft((stamp, -stamp, sequence))
        while self.arrived:
            sequence, stamp = self.arrived.popleft(), next(self.stamps)
            self.queues.setdefault(sequence.request.adapter_id, deque()).append((stamp, stamp, sequence))

    def _end(self, wanted: Collection[str | None], in_use: Collection[str], now: float) -> None:
        """As many turns as adapters wait without a slot that is free, or will be when what runs in it has ended."""
        num_lacking = sum(one not in in_use for one in self.upcoming) - (self.max_loras - len(self.since))
        expired = [one for one, began in self.since.items() if now - began >= self.cycle_time]
        for adapter_id in expired[: max(num_lacking, 0)]:
            del self.since[adapter_id]
            if adapter_id in wanted:
                self.upcoming[adapter_id] = None

    def _begin(self, in_use: Collection[str], now: float) -> None:
        held = {*self.since, *in_use}
        for adapter_id in list(self.upcoming):
            if adapter_id not in held and len(held) >= self.max_loras:
                break
            del self.upcoming[adapter_id]
            self.since[adapter_id] = now
            held.add(adapter_id)
