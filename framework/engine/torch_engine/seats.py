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


class Seats:
    """Seats for the sequences of a step of up to `max_num_seqs` and those of the one in flight.

    One more, `empty`, is for rows that are nobody's.
    """

    def __init__(self, max_num_seqs: int, max_blocks: int, block_size: int, device: torch.device) -> None:
        self.max_num_seqs, self.block_size = max_num_seqs, block_size
        self.empty = 2 * max_num_seqs
        self.tables = torch.zeros(self.empty + 1, max_blocks, dtype=torch.int32, device=device)
        self.last_tokens = torch.zeros(self.empty + 1, dtype=torch.int64, device=device)
        self.on_host = np.zeros((self.empty + 1, max_blocks), dtype=np.int64)  # as `tables` will be
        self.reset()

    def reset(self) -> None:
        """Forget all sequences."""
        self._seat_of: dict[Sequence, int] = {}
        self._free = list(range(self.empty))
        self._num_blocks = np.zeros(self.empty + 1, dtype=np.int64)  # entries of `tables` that the device has
        self.next_slots = np.full(self.empty + 1, -1)  # the slot of each seat's last token, or of its next chunk
        self._num_preemptions = [0] * self.empty  # of each seat's sequence, which has other blocks since the last one
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
        nothing of it is: `write` brings it there.
        """
        is_stale = self.next_slots[seats] != starts
        known = np.where(is_stale, 0, self._num_blocks[seats])
        needed = -(-ends // self.block_size)
        entries: list[int] = []
        blocks: list[int] = []
        for row in np.flatnonzero(needed > known).tolist():
            seat, first, end = int(seats[row]), int(known[row]), int(needed[row])
            table = sequences[row].block_table
            assert len(table) >= end, f"{sequences[row]} needs {end} blocks and has {len(table)}"
            self.on_host[seat, first:end] = table[first:end]
            entries += range(seat * self.on_host.shape[1] + first, seat * self.on_host.shape[1] + end)
            blocks += table[first:end]
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

    def write(self, sent: dict[str, Tensor]) -> None:
        """What was `missing`, on the device."""
        if len(sent["entries"]):
            self.tables.view(-1).index_put_((sent["entries"],), sent["blocks"])
        if len(sent["tokens"]):
            self.last_tokens.index_put_((sent["stale_seats"],), sent["tokens"].long())

    def note_decoded(self, seats: IntArray, starts: IntArray, rows: list[int], blocks: IntArray) -> None:
        """A decode step puts these blocks of its new slots, at `starts`, in the tables itself; of these rows only."""
        columns = starts[rows] // self.block_size
        self.on_host[seats[rows], columns] = blocks[rows]
        self._num_blocks[seats[rows]] = columns + 1
        self.next_slots[seats] = starts + 1

    def store(self, seats: Tensor, sampled: Tensor) -> None:
        """The tokens just sampled; all on the device."""
        self.last_tokens.index_put_((seats,), sampled.clamp(min=0))  # NO_TOKEN is none of the vocabulary

    def _seat(self, sequence: Sequence, batch: list[Sequence]) -> int:
        seat = self._seat_of.get(sequence)
        if seat is None:
            if not self._free:
                self._reclaim({*batch, *self._recent})
            seat = self._seat_of[sequence] = self._free.pop()
            self.next_slots[seat] = -1
        if self._num_preemptions[seat] != sequence.num_preemptions:
            self._num_preemptions[seat] = sequence.num_preemptions
            self.next_slots[seat] = -1
        return seat

    def _reclaim(self, kept: set[Sequence]) -> None:
        """Take the seats of all others; one that comes back later brings its state anew."""
        for sequence in [sequence for sequence in self._seat_of if sequence not in kept]:
            self._free.append(self._seat_of.pop(sequence))
