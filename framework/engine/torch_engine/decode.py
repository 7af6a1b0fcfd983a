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

from framework.core import Batch
from framework.engine.torch_engine.decode_rows import NUM_ROWS, DecodeRows
from framework.engine.torch_engine.graphs import capture, capturing
from framework.engine.torch_engine.in_flight import OnDevice
from framework.engine.torch_engine.seats import Seats, SeatTables
from framework.kernels.decode_step import begin_rows, finish_rows
from framework.kernels.gpu_attention import DecodeAttention
from framework.kernels.paged_decode import choose_plan
from framework.lora.pool import AdapterPool
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama


def batch_sizes(max_num_seqs: int) -> list[int]:
    """The batch sizes that are captured: 1, 2, 4, then every 8, from 256 on every 32, up to `max_num_seqs`."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, max_num_seqs + 32, 32)]
    return [*(size for size in sizes if size < max_num_seqs), max_num_seqs]


class Decoder:
    """Runs batches of one new token per sequence, at most as many as `seats` are for; servers take turns.

    `sample` takes logits (rows, vocab_size) to tokens (rows,); without it the largest logit is taken, in the graph.
    `adapters` are those that the model's linear layers read.
    """

    def __init__(
        self,
        model: Llama | GPT2,
        sample: Callable[[Tensor], Tensor] | None,
        seats: SeatTables,
        adapters: AdapterPool | None = None,
    ) -> None:
        device, max_num_seqs = model.norm.weight.device, seats.max_num_seqs
        self.model, self.sample, self.seats, self.adapters = model, sample, seats, adapters
        self.max_position = model.config.max_model_len - 1
        num_rows = NUM_ROWS + (0 if adapters is None else adapters.num_tables)
        self.rows = torch.zeros(num_rows, max_num_seqs, dtype=torch.int32, device=device)
        self.sampled = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        vocab_size = model.config.vocab_size if sample is not None else 0
        self.logits = torch.zeros(max_num_seqs, vocab_size, dtype=model.norm.weight.dtype, device=device)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.is_warm = False
        self._sizes = batch_sizes(max_num_seqs)
        self._on_host = np.zeros((num_rows, max_num_seqs), dtype=np.int32)  # the rows of the step that is launched

    def rows_of(self, seats: Seats, first_slot: int) -> DecodeRows:
        """Those of a server with these of the seats, and with slots behind `first_slot`."""
        return DecodeRows(seats, self.adapters, first_slot, self._num_run)

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

    def launch(self, batch: Batch, rows: DecodeRows) -> OnDevice:
        """Start a step of the server that has these rows."""
        num_seqs = len(batch.sequences)
        rows.fill(batch)
        self._on_host = rows.on_host
        sent, received, (start, end) = rows.next_buffers()
        start.record()
        self.rows.copy_(sent, non_blocking=True)
        self._run(num_seqs)
        received = received[:num_seqs]
        received.copy_(self.sampled[:num_seqs], non_blocking=True)
        end.record()
        return OnDevice(received, start, end)

    def _run(self, num_seqs: int) -> None:
        if self.graphs:
            self.graphs[self._num_run(num_seqs)].replay()
        else:
            self._forward(num_seqs)
        if self.sample is not None:
            sampled = self.sample(self.logits[:num_seqs])
            self.sampled[:num_seqs] = sampled
            self.seats.store(self.rows[0, :num_seqs], sampled)

    def _num_run(self, num_seqs: int) -> int:
        """Rows that a step of so many sequences runs: those of the graph that holds it."""
        return self._sizes[bisect_left(self._sizes, num_seqs)] if self.graphs else num_seqs

    def _forward(self, num_seqs: int) -> None:
        """One step over the first `num_seqs` rows, up to its tokens or, where they are sampled, its logits."""
        rows = self.rows[:NUM_ROWS, :num_seqs]
        seats, context_lens, padding, _ = rows
        if self.adapters is not None:
            self.adapters.set_step(self.rows[NUM_ROWS:, :num_seqs], self._on_host[NUM_ROWS:, :num_seqs])
        plan = choose_plan(context_lens, self.model.config.num_kv_heads)
        token_ids, positions = begin_rows(
            rows,
            self.seats.tables,
            self.seats.last_tokens,
            block_size=self.seats.block_size,
            max_position=self.max_position,  # finished static seats run past the end
        )
        attention = DecodeAttention(self.seats.tables, seats, context_lens, padding, self.seats.block_size, plan)
        logits = self.model.logits(self.model(token_ids, positions, attention))
        if self.sample is None:
            finish_rows(logits, seats, self.sampled, self.seats.last_tokens)
        else:
            self.logits[:num_seqs] = logits
