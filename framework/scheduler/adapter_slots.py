"""Which adapter is in which slot of the device: least recently used goes first, one in use never goes."""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import Protocol

from framework.core import Request, Sequence


class FreeSlots(Protocol):
    """A stack of the free slots."""

    def __len__(self) -> int: ...

    def pop(self) -> int: ...

    def append(self, slot: int, /) -> None: ...


class AdapterSlots:
    """Slots 1 … `num_slots`, of which sequences may use up to `max_loras` at once; without slots adapters are ignored.

    `loads`, slot → adapter id, is what was decided since it was last taken. A call costs at most O(num_slots), whatever
    the number of sequences and adapters. Adapters have memory of their own here; AdapterRanges shares the KV cache's.
    """

    blocks_per_adapter = 0  # KV blocks

    def __init__(self, num_slots: int, max_loras: int | None = None) -> None:
        if max_loras is not None and (max_loras < 1 or 0 < num_slots < max_loras):
            raise ValueError(
                f"max_loras {max_loras} must be at least 1 and at most lora.num_slots, which is {num_slots}"
            )
        self.num_slots = num_slots
        self.max_loras = num_slots if max_loras is None else max_loras
        self.slot_of: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self.free: FreeSlots = list(range(num_slots, 0, -1))
        self.num_users: Counter[str] = Counter()  # sequences with a slot; without zeros
        self.loads: dict[int, str] = {}

    def num_blocks_of(self, request: Request) -> int:
        """KV blocks that the request's adapter takes."""
        return 0 if request.adapter_id is None else self.blocks_per_adapter

    def num_missing_blocks(self, sequence: Sequence) -> int:
        """How many of the free KV blocks the sequence's adapter would take."""
        return 0 if sequence.request.adapter_id in self.num_users else self.num_blocks_of(sequence.request)

    def can_admit(self, sequence: Sequence) -> bool:
        adapter_id = sequence.request.adapter_id
        if adapter_id is None or not self.num_slots or adapter_id in self.num_users:
            return True
        return len(self.num_users) < self.max_loras

    def admit(self, sequence: Sequence) -> None:
        """Give the sequence its adapter's slot; `can_admit` said that there is one."""
        adapter_id = sequence.request.adapter_id
        if adapter_id is not None and self.num_slots:
            self._bring(adapter_id)
            self.num_users[adapter_id] += 1
            sequence.adapter_slot = self.slot_of[adapter_id]

    def release(self, sequence: Sequence) -> None:
        """The sequence runs no longer; its adapter stays until its slot is needed."""
        if sequence.adapter_slot:
            adapter_id = sequence.request.adapter_id
            assert adapter_id is not None
            self.num_users[adapter_id] -= 1
            if not self.num_users[adapter_id]:
                del self.num_users[adapter_id]
                self.slot_of.move_to_end(adapter_id)
            sequence.adapter_slot = 0

    def prefetch(self, waiting: Iterable[Sequence]) -> None:
        """Bring one adapter that the first of the waiting will need, if a slot is used by none and wanted by none."""
        wanted: set[str] = set()
        for sequence in islice(waiting, self.num_slots):
            adapter_id = sequence.request.adapter_id
            if adapter_id is None or adapter_id in wanted:
                continue
            wanted.add(adapter_id)
            if adapter_id not in self.slot_of:
                if self.free or self._unused(wanted) is not None:
                    self._bring(adapter_id, wanted)
                return

    def take_loads(self) -> dict[int, str]:
        loads, self.loads = self.loads, {}
        return loads

    def evict(self, wanted: Iterable[str] = ()) -> None:
        """Free the slot of the least recently used adapter that nobody uses or wants; there is one."""
        evicted = self._unused(wanted)
        assert evicted is not None, "all slots are in use"
        slot = self.slot_of.pop(evicted)
        self.loads.pop(slot, None)
        self.free.append(slot)

    def _bring(self, adapter_id: str, wanted: Iterable[str] = ()) -> None:
        """See that the adapter has a slot, as the one used last."""
        if adapter_id not in self.slot_of:
            if not self.free:
                self.evict(wanted)
            slot = self.free.pop()
            self.slot_of[adapter_id] = slot
            self.loads[slot] = adapter_id
        self.slot_of.move_to_end(adapter_id)

    def _unused(self, wanted: Iterable[str]) -> str | None:
        """The least recently used adapter that no sequence uses and that is not wanted."""
        return next((one for one in self.slot_of if one not in self.num_users and one not in wanted), None)
