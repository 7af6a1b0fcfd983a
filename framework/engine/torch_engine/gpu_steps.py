"""Steps on a GPU: those of one new token per sequence take the Decoder's way, all others that of MixedSteps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress

import numpy as np

from framework.core import Batch
from framework.engine.torch_engine.adapters import Placement
from framework.engine.torch_engine.decode import Decoder
from framework.engine.torch_engine.decode_rows import DecodeRows
from framework.engine.torch_engine.in_flight import OnDevice, Started, pinned, record_event
from framework.engine.torch_engine.inputs import StepInputs, block_tables, step_inputs
from framework.engine.torch_engine.mixed import MixedSteps
from framework.engine.torch_engine.options import EngineOptions
from framework.engine.torch_engine.sampling import Sampler
from framework.engine.torch_engine.seats import Seats, SeatTables
from framework.engine.torch_engine.share import Share
from framework.kernels.arrays import IntArray
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama


class GpuSteps:
    """Forward passes of `model`, whose linear layers read `adapters`, over a cache of `num_blocks` blocks.

    Without `options.has_decoder` all steps take MixedSteps' way, and the host tells every token.
    """

    def __init__(
        self, model: Llama | GPT2, adapters: Placement, sampler: Sampler, options: EngineOptions, num_blocks: int
    ) -> None:
        self.model, self.adapters, self.sampler, self.options = model, adapters, sampler, options
        self.num_blocks = num_blocks
        self.seats: SeatTables | None = None
        self.rows: list[DecodeRows] = []  # of each server
        self.decoder: Decoder | None = None
        self.mixed = self._mixed_steps()

    def begin(self, max_num_seqs: int, shares: list[Share]) -> None:
        """Forget all sequences of these servers; graphs of mixed steps are not replayed until `capture`."""
        if self.options.has_decoder:
            self._seat(max_num_seqs, shares)
        self.mixed.is_replayed = False

    def capture(self, num_rows: int, on_progress: Callable[[str], None]) -> None:
        """Warm every decode batch size and capture what is replayed, if that has not been done.

        Steps have at most `num_rows` rows.
        """
        if self.decoder is not None and not self.decoder.is_warm:
            self.decoder.warm_up(on_progress, do_capture=self.options.cuda_graphs)
        if self.options.cuda_graphs:
            self.mixed.capture(min(num_rows, self.num_blocks * self.options.block_size), on_progress)
            self.mixed.is_replayed = True

    def forget(self, share: Share) -> None:
        """A sequence of the server may have other blocks in the next step, at the length of the last one."""
        if self.decoder is not None:
            self.rows[share.index].forget()

    def launch(self, batch: Batch, share: Share, timer: Callable[[], float]) -> Started:
        if self.decoder is not None and batch.num_prefill_tokens == 0:
            self.sampler.set_step(batch.sequences)
            return self.decoder.launch(batch, self.rows[share.index]), [True] * len(batch.sequences), timer()
        inputs, missing = self._inputs(batch, share)
        self.sampler.set_step(compress(batch.sequences, inputs.samples))
        arrays = missing | {"rows": inputs.sampled_rows, "sampled_seats": inputs.seats[inputs.samples]}
        laid_out = self.mixed.lay_out(inputs, arrays)
        prepared_time, start = timer(), record_event()
        sent = laid_out.send()
        if self.seats is not None:
            self.seats.write(sent)
        hidden = laid_out.compute(sent).index_select(0, sent["rows"])
        self.adapters.set_head_step()
        sampled = self.sampler.choose(self.model.logits(hidden))
        if self.seats is not None:
            self.seats.store(sent["sampled_seats"], sampled)
        token_ids = pinned(len(sampled), dtype=sampled.dtype)
        token_ids.copy_(sampled, non_blocking=True)
        return OnDevice(token_ids, start, record_event()), inputs.samples.tolist(), prepared_time

    def _inputs(self, batch: Batch, share: Share) -> tuple[StepInputs, dict[str, IntArray]]:
        """The step's inputs, and what the device has to be told of its sequences before."""
        limits = {"max_model_len": self.model.config.max_model_len, "first_slot": share.first_slot}
        if self.seats is None:
            has_cache, block_size = self.options.use_cache, self.options.block_size
            tables = block_tables(batch, block_size, share.first_block) if has_cache else None
            return step_inputs(batch, tables, np.arange(len(batch.sequences)), **limits), {}
        rows, starts, num_decode = self.rows[share.index], np.array(batch.starts), batch.num_decode_tokens
        seats, ends = rows.seats.take(batch.sequences), starts + np.array(batch.num_tokens)
        rows.forget()
        missing = rows.seats.missing(batch.sequences, seats, starts, ends, num_decode)
        tables = self.seats.on_host[:, : -(-int(ends.max()) // self.options.block_size)]
        return step_inputs(batch, tables, seats, num_decode=num_decode, **limits), missing

    def _seat(self, max_num_seqs: int, shares: list[Share]) -> None:
        """Empty seats and a decoder: those at hand where they will do, else others.

        A decoder's graphs choose the tokens only if that is greedy.
        """
        choose = None if self.sampler.is_greedy else self.sampler.choose
        self.rows = []
        num_servers = len(shares)
        if self.seats is None or not self.seats.holds(max_num_seqs, num_servers):
            if self.seats is not None:  # those who had them may come again
                max_num_seqs = max(max_num_seqs, self.seats.max_num_seqs)
                num_servers = max(num_servers, self.seats.num_servers)
            self.decoder = self.seats = None  # their memory is free before others are built
            self.mixed = self._mixed_steps()
            # A static batch may reserve the longest prompt and another request's longest output
            max_blocks = min(-(-2 * self.model.config.max_model_len // self.options.block_size), self.num_blocks)
            device = self.model.norm.weight.device
            self.seats = SeatTables(max_num_seqs, max_blocks, self.options.block_size, device, num_servers)
            self.mixed = self._mixed_steps()
        if self.decoder is None or self.decoder.sample != choose:
            self.decoder = None
            self.decoder = Decoder(self.model, choose, self.seats, self.adapters.pool)
        for share in shares:
            seats = Seats(self.seats, share.index, share.first_block)
            self.rows.append(self.decoder.rows_of(seats, share.first_slot))

    def _mixed_steps(self) -> MixedSteps:
        options = self.options
        return MixedSteps(
            self.model, self.adapters, self.seats, block_size=options.block_size, kv_dtype=options.kv_dtype
        )
