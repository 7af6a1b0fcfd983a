"""Decode steps on a GPU: the state of every sequence stays on the device, and each batch size has a captured graph.

Per step the host sends a few numbers per sequence in one copy.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from framework.core import Batch, Sequence
from framework.engine.torch_engine.graphs import capture, capturing
from framework.engine.torch_engine.in_flight import OnDevice, pinned, record_event
from framework.engine.torch_engine.seats import Seats
from framework.engine.torch_engine.upload import upload
from framework.kernels.decode_step import begin_rows, finish_rows
from framework.kernels.gpu_attention import DecodeAttention
from framework.lora.pool import AdapterPool
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama

NUM_ROWS = 4  # that the host sends per step: see begin_rows; the adapters' tables come below
NUM_BUFFERS = 2  # steps whose inputs and tokens may be on their way between host and device


def batch_sizes(max_num_seqs: int) -> list[int]:
    """The batch sizes that are captured: 1, 2, 4, then every 8, from 256 on every 32, up to `max_num_seqs`."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, max_num_seqs + 32, 32)]
    return [*(size for size in sizes if size < max_num_seqs), max_num_seqs]


class Decoder:
    """Runs batches of one new token per sequence, at most as many as `seats` are for.

    `sample` takes logits (rows, vocab_size) to tokens (rows,); without it the largest logit is taken, in the graph.
    `adapters` are those that the model's linear layers read.
    """

    def __init__(
        self,
        model: Llama | GPT2,
        sample: Callable[[Tensor], Tensor] | None,
        seats: Seats,
        adapters: AdapterPool | None = None,
    ) -> None:
        device, max_num_seqs = model.norm.weight.device, seats.max_num_seqs
        self.model, self.sample, self.seats, self.adapters = model, sample, seats, adapters
        self.max_position = model.config.max_model_len - 1
        self.num_rows = NUM_ROWS + (0 if adapters is None else adapters.num_tables)
        self.rows = torch.zeros(self.num_rows, max_num_seqs, dtype=torch.int32, device=device)
        self.sampled = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        vocab_size = model.config.vocab_size if sample is not None else 0
        self.logits = torch.zeros(max_num_seqs, vocab_size, dtype=model.norm.weight.dtype, device=device)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.is_warm = False
        self._sent = [pinned(self.num_rows, max_num_seqs, dtype=torch.int32) for _ in range(NUM_BUFFERS)]
        self._received = [pinned(max_num_seqs, dtype=torch.int64) for _ in range(NUM_BUFFERS)]
        # Kept, as one that is made anew takes the host longer than its step's graph
        self._events = [(record_event(), record_event()) for _ in range(NUM_BUFFERS)]
        self._sizes = batch_sizes(max_num_seqs)
        self._num_launched = 0
        self.reset()

    def reset(self) -> None:
        """Forget all sequences."""
        self._sequences: list[Sequence] = []  # the rows of the last step, if that was one of the decoder's
        self._host_rows = np.zeros((self.num_rows, self.seats.max_num_seqs), dtype=np.int32)

    @torch.inference_mode()
    def warm_up(self, on_progress: Callable[[str], None], *, do_capture: bool) -> None:
        """Run every batch size once and, if asked to, capture it; all rows are empty, so no cache slot is written."""
        self.rows.zero_()
        self.rows[0] = self.seats.empty
        pool = torch.cuda.graph_pool_handle() if do_capture else None
        with capturing():
            for index, size in enumerate(reversed(self._sizes)):  # the largest first: the others reuse its memory
                on_progress(f"decode steps, batch size {index + 1} of {len(self._sizes)}")
                if do_capture:
                    self.graphs[size], _ = capture(partial(self._forward, size), pool)
                else:
                    self._forward(size)
        self.is_warm = True

    def forget_rows(self) -> None:
        """Another step comes between."""
        self._sequences = []

    def launch(self, batch: Batch) -> OnDevice:
        """Start a step."""
        num_seqs = len(batch.sequences)
        if batch.swap_in:  # a sequence that comes back at the same length has other blocks
            self.forget_rows()
        self._fill_rows(batch)
        buffer = self._num_launched % NUM_BUFFERS
        self._num_launched += 1
        sent, received = self._sent[buffer], self._received[buffer][:num_seqs]
        sent.numpy()[:] = self._host_rows
        start, end = self._events[buffer]
        start.record()
        self.rows.copy_(sent, non_blocking=True)
        self._run(num_seqs)
        received.copy_(self.sampled[:num_seqs], non_blocking=True)
        end.record()
        return OnDevice(received, start, end)

    def _run(self, num_seqs: int) -> None:
        if self.graphs:
            self.graphs[self._captured_size(num_seqs)].replay()
        else:
            self._forward(num_seqs)
        if self.sample is not None:
            sampled = self.sample(self.logits[:num_seqs])
            self.sampled[:num_seqs] = sampled
            self.seats.store(self.rows[0, :num_seqs], sampled)

    def _captured_size(self, num_seqs: int) -> int:
        return self._sizes[bisect_left(self._sizes, num_seqs)]

    def _forward(self, num_seqs: int) -> None:
        """One step over the first `num_seqs` rows, up to its tokens or, where they are sampled, its logits."""
        rows = self.rows[:NUM_ROWS, :num_seqs]
        seats, context_lens, padding, _ = rows
        if self.adapters is not None:
            self.adapters.set_step(self.rows[NUM_ROWS:, :num_seqs], self._host_rows[NUM_ROWS:, :num_seqs])
        token_ids, positions = begin_rows(
            rows,
            self.seats.tables,
            self.seats.last_tokens,
            block_size=self.seats.block_size,
            max_position=self.max_position,  # finished static seats run past the end
        )
        attention = DecodeAttention(self.seats.tables, seats, context_lens, padding, self.seats.block_size)
        logits = self.model.logits(self.model(token_ids, positions, attention))
        if self.sample is None:
            finish_rows(logits, seats, self.sampled, self.seats.last_tokens)
        else:
            self.logits[:num_seqs] = logits

    def _fill_rows(self, batch: Batch) -> None:
        """Seats, context lengths, padding, and the block of the new slot."""
        num_seqs, sequences = len(batch.sequences), batch.sequences
        starts = np.array(batch.starts)
        seats, context_lens, padding, new_blocks = self._host_rows[:NUM_ROWS, :num_seqs]
        block_size = self.seats.block_size
        if sequences == self._sequences and (self.seats.next_slots[seats] == starts).all():
            changed = np.flatnonzero(starts % block_size == 0).tolist()  # rows that go on in a new block
        else:
            self._host_rows[:] = 0
            self._host_rows[0] = self.seats.empty
            seats[:] = self.seats.take(sequences)
            padding[:] = [sequence.num_padding for sequence in sequences]
            if self.adapters is not None:
                slots = np.zeros(self._captured_size(num_seqs) if self.graphs else num_seqs, dtype=np.int64)
                slots[:num_seqs] = [sequence.adapter_slot for sequence in sequences]
                self._host_rows[NUM_ROWS:, : len(slots)] = self.adapters.step_tables(slots)
            self._sequences = list(sequences)
            changed = list(range(num_seqs))
            stale = np.flatnonzero(self.seats.next_slots[seats] != starts)
            if len(stale):
                others = [sequences[row] for row in stale.tolist()]
                missing = self.seats.missing(others, seats[stale], starts[stale], starts[stale] + 1, len(others))
                self.seats.write(upload(self.seats.tables.device, missing))
        for row in changed:
            new_blocks[row] = sequences[row].block_table[batch.starts[row] // block_size]
        context_lens[:] = starts + 1
        self.seats.note_decoded(seats, starts, changed, new_blocks)
