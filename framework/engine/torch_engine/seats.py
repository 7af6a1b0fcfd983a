"""What a GPU keeps of every sequence in the cache: its row of the block tables, and its last token.

The next step takes the token without asking the host, and of the tables the host sends only what is new.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from framework.core import Sequence
from framework.engine.torch_engine.inputs import write_tokens
from framework.kernels.arrays import IntArray


class SeatTables:
    """What the device has of all seats: those of each server for a step of up to `max_num_seqs` and the one in flight.

    One more, `empty`, is for rows that are nobody's.
    """

    def __init__(
        self, max_num_seqs: int, max_blocks: int, block_size: int, device: torch.device, num_servers: int = 1
    ) -> None:
        self.max_num_seqs, self.block_size, self.num_servers = max_num_seqs, block_size, num_servers
        self.empty = num_servers * 2 * max_num_seqs
        self.tables = torch.zeros(self.empty + 1, max_blocks, dtype=torch.int32, device=device)
        self.last_tokens = torch.zeros(self.empty + 1, dtype=torch.int64, device=device)
        self.on_host = np.zeros((self.empty + 1, max_blocks), dtype=np.int64)  # as `tables` will be

    def holds(self, max_num_seqs: int, num_servers: int) -> bool:
        """Whether there are enough for so many servers with batches of up to `max_num_seqs`."""
        return self.max_num_seqs >= max_num_seqs and self.num_servers >= num_servers

    def write(self, sent: dict[str, Tensor]) -> None:
        """What was `missing`, on the device."""
        if len(sent["entries"]):
            self.tables.view(-1).index_put_((sent["entries"],), sent["blocks"])
        if len(sent["tokens"]):
            self.last_tokens.index_put_((sent["stale_seats"],), sent["tokens"].long())

    def store(self, seats: Tensor, sampled: Tensor) -> None:
        """The tokens just sampled; all on the device."""
        self.last_tokens.index_put_((seats,), sampled.clamp(min=0))  # NO_TOKEN is none of the vocabulary


class Seats:
    """Which sequence of the server `index` has which of the seats in `device`; its blocks begin at `first_block`."""

    def __init__(self, device: SeatTables, index: int = 0, first_block: int = 0) -> None:
        self.device, self.first_block = device, first_block
        num_seats = 2 * device.max_num_seqs
        self._free = list(range(index * num_seats, (index + 1) * num_seats))
        self._seat_of: dict[Sequence, int] = {}
        self._num_blocks = np.zeros(device.empty + 1, dtype=np.int64)  # entries of its tables that the device has
        self.next_slots = np.full(device.empty + 1, -1)  # the slot of each seat's last token, or of its next chunk
        self._num_tables = [0] * device.empty  # that each seat's sequence has had: its blocks change with this
        self._recent: list[Sequence] = []  # of the last step, which may be in flight

    def take(self, sequences: list[Sequence]) -> IntArray:
        """Their seats, (num_seqs,)."""
        seats = np.array([self._seat(sequence, sequences) for sequence in sequences])
        self._recent = list(sequences)
        return seats

    def missing(
        self, sequences: list[Sequence], seats: IntArray, starts: IntArray, ends: IntArray, num_decode: int
    ) -> dict[str, IntArray]:
        """What of the blocks up to `ends` the device does not have: all of them if a sequence left off elsewhere.

        Of such a sequence its token at `starts` is missing too, if it is among the first `num_decode`. From here on
        nothing of it is: `SeatTables.write` brings it there.
        """
        is_stale = self.next_slots[seats] != starts
        known = np.where(is_stale, 0, self._num_blocks[seats])
        on_host, needed = self.device.on_host, -(-ends // self.device.block_size)
        entries: list[int] = []
        blocks: list[int] = []
        for row in np.flatnonzero(needed > known).tolist():
            seat, first, end = int(seats[row]), int(known[row]), int(needed[row])
            table = sequences[row].block_table
            assert len(table) >= end, f"{sequences[row]} needs {end} blocks and has {len(table)}"
            new = [block + self.first_block for block in table[first:end]]
            on_host[seat, first:end] = new
            entries += range(seat * on_host.shape[1] + first, seat * on_host.shape[1] + end)
            blocks += new
        self._num_blocks[seats] = np.maximum(known, needed)
        self.next_slots[seats] = ends
        rows = np.flatnonzero(is_stale[:num_decode])
        tokens = np.zeros(len(rows), dtype=np.int64)
        for index, row in enumerate(rows.tolist()):
            write_tokens(tokens[index : index + 1], sequences[row], int(starts[row]))
        return {
            "entries": np.array(entries, dtype=np.int64),
            "blocks": np.array(blocks, dtype=np.int64),
            "stale_seats": seats[rows],
            "tokens": tokens,
        }

    def note_decoded(self, seats: IntArray, starts: IntArray, rows: list[int], blocks: IntArray) -> None:
        """A decode step puts these blocks of its new slots, at `starts`, in the tables itself; of these rows only."""
        columns = starts[rows] // self.device.block_size
        self.device.on_host[seats[rows], columns] = blocks[rows]
        self._num_blocks[seats[rows]] = columns + 1
        self.next_slots[seats] = starts + 1

    def _seat(self, sequence: Sequence, batch: list[Sequence]) -> int:
        seat = self._seat_of.get(sequence)
        if seat is None:
            if not self._free:
                self._reclaim({*batch, *self._recent})
            seat = self._seat_of[sequence] = self._free.pop()
            self.next_slots[seat] = -1
        num_tables = sequence.num_preemptions + sequence.num_moves
        if self._num_tables[seat] != num_tables:
            self._num_tables[seat] = num_tables
            self.next_slots[seat] = -1
        return seat

    def _reclaim(self, kept: set[Sequence]) -> None:
        """Take the seats of all others; one that comes back later brings its state anew."""
        for sequence in [sequence for sequence in self._seat_of if sequence not in kept]:
            self._free.append(self._seat_of.pop(sequence))
