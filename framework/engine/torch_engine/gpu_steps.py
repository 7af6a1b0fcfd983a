"""Steps on a GPU: those of one new token per sequence take the Decoder's way, all others that of MixedSteps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress

import numpy as np

from framework.core import Batch
from framework.engine.torch_engine.adapters import Placement
from framework.engine.torch_engine.decode import Decoder
from framework.engine.torch_engine.in_flight import OnDevice, Started, pinned, record_event
from framework.engine.torch_engine.inputs import StepInputs, block_tables, step_inputs
from framework.engine.torch_engine.mixed import MixedSteps
from framework.engine.torch_engine.options import EngineOptions
from framework.engine.torch_engine.sampling import Sampler
from framework.engine.torch_engine.seats import Seats
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
        self.seats: Seats | None = None
        self.decoder: Decoder | None = None
        self.mixed = self._mixed_steps()

    def begin(self, max_num_seqs: int) -> None:
        """Forget all sequences; graphs of mixed steps are not replayed until `capture`."""
        if self.options.has_decoder:
            self._seat(max_num_seqs)
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

    def launch(self, batch: Batch, timer: Callable[[], float]) -> Started:
        if self.decoder is not None and batch.num_prefill_tokens == 0:
            self.sampler.set_step(batch.sequences)
            return self.decoder.launch(batch), [True] * len(batch.sequences), timer()
        inputs, missing = self._inputs(batch)
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

    def _inputs(self, batch: Batch) -> tuple[StepInputs, dict[str, IntArray]]:
        """The step's inputs, and what the device has to be told of its sequences before."""
        max_model_len, num_seqs = self.model.config.max_model_len, len(batch.sequences)
        if self.seats is None or self.decoder is None:
            tables = block_tables(batch, self.options.block_size) if self.options.use_cache else None
            return step_inputs(batch, tables, np.arange(num_seqs), max_model_len=max_model_len), {}
        seats, starts, num_decode = self.seats.take(batch.sequences), np.array(batch.starts), batch.num_decode_tokens
        ends = starts + np.array(batch.num_tokens)
        self.decoder.forget_rows()
        missing = self.seats.missing(batch.sequences, seats, starts, ends, num_decode)
        tables = self.seats.on_host[:, : -(-int(ends.max()) // self.options.block_size)]
        return step_inputs(batch, tables, seats, max_model_len=max_model_len, num_decode=num_decode), missing

    def _seat(self, max_num_seqs: int) -> None:
        """Empty seats and a decoder: those at hand where they will do, else others.

        A decoder's graphs choose the tokens only if that is greedy.
        """
        choose = None if self.sampler.is_greedy else self.sampler.choose
        if self.seats is None or self.seats.max_num_seqs < max_num_seqs:
            self.decoder = self.seats = None  # their memory is free before others are built
            self.mixed = self._mixed_steps()
            # A static batch may reserve the longest prompt and another request's longest output
            max_blocks = -(-2 * self.model.config.max_model_len // self.options.block_size)
            device = self.model.norm.weight.device
            self.seats = Seats(max_num_seqs, min(max_blocks, self.num_blocks), self.options.block_size, device)
            self.mixed = self._mixed_steps()
        if self.decoder is None or self.decoder.sample != choose:
            self.decoder = None
            self.decoder = Decoder(self.model, choose, self.seats, self.adapters.pool)
        self.decoder.reset()
        self.seats.reset()

    def _mixed_steps(self) -> MixedSteps:
        options = self.options
        return MixedSteps(
            self.model, self.adapters, self.seats, block_size=options.block_size, kv_dtype=options.kv_dtype
        )
