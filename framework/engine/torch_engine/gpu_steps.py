"""Steps on a GPU: those of one new token per sequence take the Decoder's way, all others that of PromptSteps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress

from framework.core import Batch
from framework.engine.torch_engine.adapters import Placement
from framework.engine.torch_engine.decode import Decoder
from framework.engine.torch_engine.in_flight import OnDevice, Started, pinned, record_event
from framework.engine.torch_engine.inputs import StepInputs, step_inputs
from framework.engine.torch_engine.options import EngineOptions
from framework.engine.torch_engine.prefill import PromptSteps
from framework.engine.torch_engine.sampling import Sampler
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama


class GpuSteps:
    """Forward passes of `model`, whose linear layers read `adapters`, over a cache of `num_blocks` blocks.

    Without `options.has_decoder` all steps take PromptSteps' way.
    """

    def __init__(
        self, model: Llama | GPT2, adapters: Placement, sampler: Sampler, options: EngineOptions, num_blocks: int
    ) -> None:
        self.model, self.adapters, self.sampler, self.options = model, adapters, sampler, options
        self.num_blocks = num_blocks
        self.prompts = PromptSteps(model, adapters, options.block_size, options.kv_dtype)
        self.decoder: Decoder | None = None

    def begin(self, max_num_seqs: int) -> None:
        """Forget all sequences; graphs of prompts are not replayed until `capture`."""
        if self.options.has_decoder:
            self.decoder = self._decoder_for(max_num_seqs)
            self.decoder.reset()
        self.prompts.is_replayed = False

    def capture(self, num_rows: int, on_progress: Callable[[str], None]) -> None:
        """Warm every decode batch size and capture what is replayed, if that has not been done.

        Steps have at most `num_rows` rows.
        """
        if self.decoder is not None and not self.decoder.is_warm:
            self.decoder.warm_up(on_progress, capture=self.options.cuda_graphs)
        if self.options.cuda_graphs:
            self.prompts.capture(min(num_rows, self.num_blocks * self.options.block_size), on_progress)
            self.prompts.is_replayed = self.prompts.has_flash

    def launch(self, batch: Batch, timer: Callable[[], float]) -> Started:
        if self.decoder is not None and batch.num_prefill_tokens == 0:
            self.sampler.set_step(batch.sequences)
            return self.decoder.launch(batch), [True] * len(batch.sequences), timer()
        inputs = step_inputs(
            batch,
            max_model_len=self.model.config.max_model_len,
            block_size=self.options.block_size,
            use_cache=self.options.use_cache,
        )
        self.sampler.set_step(compress(batch.sequences, inputs.samples))
        running, prepared_time = self._launch_prompts(batch, inputs, timer)
        return running, inputs.samples.tolist(), prepared_time

    def _launch_prompts(self, batch: Batch, inputs: StepInputs, timer: Callable[[], float]) -> tuple[OnDevice, float]:
        arrays = {"rows": inputs.sampled_rows}
        if self.decoder is not None:
            assert inputs.block_tables is not None
            seats = self.decoder.admit(batch.sequences, inputs.context_lens, inputs.samples)
            arrays |= {"seats": seats, "sampled_seats": seats[inputs.samples], "tables": inputs.block_tables}
        sent, compute_hidden = self.prompts.lay_out(inputs, arrays)
        prepared_time, start = timer(), record_event()
        hidden = compute_hidden().index_select(0, sent["rows"])
        self.adapters.set_head_step()
        sampled = self.sampler.choose(self.model.logits(hidden))
        if self.decoder is not None:
            tables = sent["tables"].view(len(batch.sequences), -1)
            self.decoder.store(sent["seats"], tables, sent["sampled_seats"], sampled)
        token_ids = pinned(len(sampled), dtype=sampled.dtype)
        token_ids.copy_(sampled, non_blocking=True)
        return OnDevice(token_ids, start, record_event()), prepared_time

    def _decoder_for(self, max_num_seqs: int) -> Decoder:
        """The one at hand where it will do, else another; its graphs choose the tokens only if that is greedy."""
        choose = None if self.sampler.is_greedy else self.sampler.choose
        decoder = self.decoder
        if decoder is not None and decoder.max_num_seqs >= max_num_seqs and decoder.sample == choose:
            return decoder
        self.decoder = decoder = None  # its memory is free before another is built
        return Decoder(
            self.model,
            choose,
            max_num_seqs=max_num_seqs,
            block_size=self.options.block_size,
            num_blocks=self.num_blocks,
            adapters=self.adapters.pool,
        )
