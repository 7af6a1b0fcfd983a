"""Whose requests are admitted: adapters take turns, a time slice each (LoRAX's `adapter_cycle_time_s`).

What runs when a turn ends runs on and holds its adapter's slot; the next turn begins when a slot is free.
"""

from collections import deque
from collections.abc import Collection

from framework.core import Sequence


class AdapterTurns:
    """Up to `max_loras` adapters have their turn, each for `cycle_time` seconds, or longer while no other one waits.

    Requests without an adapter need no turn.
    """

    def __init__(self, max_loras: int, cycle_time: float) -> None:
        if not cycle_time > 0:
            raise ValueError(f"adapter_cycle_time must be a positive number of seconds, not {cycle_time}")
        self.max_loras, self.cycle_time = max_loras, cycle_time
        self.since: dict[str, float] = {}  # adapters that have their turn → when it began (s), the oldest first
        self.upcoming: dict[str, None] = {}  # adapters that wait for theirs, in this order

    def has_turn(self, sequence: Sequence) -> bool:
        adapter_id = sequence.request.adapter_id
        return adapter_id is None or adapter_id in self.since

    def update(self, waiting: deque[Sequence], in_use: Collection[str], now: float) -> deque[Sequence]:
        """End and begin turns; `waiting` with those first whose turn it is, then in the order of the turns to come.

        `in_use`: the adapters of running sequences. Who came first stays first among those of one adapter, and among
        all that have their turn. Costs O(waiting).
        """
        wanted = dict.fromkeys(one.request.adapter_id for one in waiting if one.request.adapter_id is not None)
        self.since = {one: began for one, began in self.since.items() if one in wanted or one in in_use}
        self.upcoming = {one: None for one in self.upcoming if one in wanted}
        self.upcoming |= dict.fromkeys(one for one in wanted if one not in self.since)
        self._end(wanted, in_use, now)
        self._begin(in_use, now)
        place = {adapter_id: index for index, adapter_id in enumerate(self.upcoming)}
        return deque(sorted(waiting, key=lambda one: place.get(one.request.adapter_id or "", -1)))

    def _end(self, wanted: Collection[str], in_use: Collection[str], now: float) -> None:
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
