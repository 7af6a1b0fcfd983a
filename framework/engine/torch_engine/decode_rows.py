"""The rows of one server's decode steps, as the host keeps them from step to step.

They go to the device in one copy, and the tokens come back in another; of a batch that goes on only what is new is
written.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from framework.core import Batch, Sequence
from framework.engine.torch_engine.in_flight import pinned, record_event
from framework.engine.torch_engine.inputs import slots_of
from framework.engine.torch_engine.seats import Seats
from framework.engine.torch_engine.upload import upload
from framework.lora.pool import AdapterPool

NUM_ROWS = 4  # that the host sends per step: see begin_rows; the adapters' tables come below
NUM_BUFFERS = 2  # steps whose inputs and tokens may be on their way between host and device


class DecodeRows:
    """Of a server with these seats, whose adapters begin behind `first_slot`; `padded` says how many rows are run."""

    def __init__(
        self, seats: Seats, adapters: AdapterPool | None, first_slot: int, padded: Callable[[int], int]
    ) -> None:
        self.seats, self.adapters, self.first_slot, self.padded = seats, adapters, first_slot, padded
        self.num_rows = NUM_ROWS + (0 if adapters is None else adapters.num_tables)
        max_num_seqs = seats.device.max_num_seqs
        self.on_host = np.zeros((self.num_rows, max_num_seqs), dtype=np.int32)
        self._sequences: list[Sequence] = []  # of the last step, if that was one of these
        self._sent = [pinned(self.num_rows, max_num_seqs, dtype=torch.int32) for _ in range(NUM_BUFFERS)]
        self._received = [pinned(max_num_seqs, dtype=torch.int64) for _ in range(NUM_BUFFERS)]
        # Kept, as one that is made anew takes the host longer than its step's graph
        self._events = [(record_event(), record_event()) for _ in range(NUM_BUFFERS)]
        self._num_launched = 0

    def forget(self) -> None:
        """Another step comes between."""
        self._sequences = []

    def next_buffers(self) -> tuple[Tensor, Tensor, tuple[torch.cuda.Event, torch.cuda.Event]]:
        """The rows to be sent, where the tokens come to, and the events of the step's begin and end."""
        buffer = self._num_launched % NUM_BUFFERS
        self._num_launched += 1
        sent = self._sent[buffer]
        sent.numpy()[:] = self.on_host
        return sent, self._received[buffer], self._events[buffer]

    def fill(self, batch: Batch) -> None:
        """Seats, context lengths, padding, and the block of the new slot."""
        if batch.swap_in:  # a sequence that comes back at the same length has other blocks
            self.forget()
        num_seqs, sequences = len(batch.sequences), batch.sequences
        starts = np.array(batch.starts)
        seats, context_lens, _, new_blocks = self.on_host[:NUM_ROWS, :num_seqs]
        block_size, first_block = self.seats.device.block_size, self.seats.first_block
        if sequences == self._sequences and (self.seats.next_slots[seats] == starts).all():
            changed = np.flatnonzero(starts % block_size == 0).tolist()  # rows that go on in a new block
        else:
            self._begin(sequences)
            changed = list(range(num_seqs))
            stale = np.flatnonzero(self.seats.next_slots[seats] != starts)
            if len(stale):
                others = [sequences[row] for row in stale.tolist()]
                missing = self.seats.missing(others, seats[stale], starts[stale], starts[stale] + 1, len(others))
                self.seats.device.write(upload(self.seats.device.tables.device, missing))
        for row in changed:
            new_blocks[row] = sequences[row].block_table[batch.starts[row] // block_size] + first_block
        context_lens[:] = starts + 1
        self.seats.note_decoded(seats, starts, changed, new_blocks)

    def _begin(self, sequences: list[Sequence]) -> None:
        """The rows of other sequences than those of the last step."""
        num_seqs = len(sequences)
        self.on_host[:] = 0
        self.on_host[0] = self.seats.device.empty
        seats, _, padding, _ = self.on_host[:NUM_ROWS, :num_seqs]
        seats[:] = self.seats.take(sequences)
        padding[:] = [sequence.num_padding for sequence in sequences]
        if self.adapters is not None:
            slots = np.zeros(self.padded(num_seqs), dtype=np.int64)
            slots[:num_seqs] = slots_of(sequences, self.first_slot)
            self.on_host[NUM_ROWS:, : len(slots)] = self.adapters.step_tables(slots)
        self._sequences = list(sequences)
