"""Steps on a CPU: the host lays out each of them anew, and its tokens are there when it is launched."""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress

import numpy as np
import torch

from framework.core import Batch
from framework.engine.torch_engine.adapters import Placement
from framework.engine.torch_engine.in_flight import Done, Started
from framework.engine.torch_engine.inputs import block_tables, step_inputs
from framework.engine.torch_engine.mixed import plain
from framework.engine.torch_engine.options import EngineOptions
from framework.engine.torch_engine.sampling import Sampler
from framework.engine.torch_engine.share import Share
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama


class CpuSteps:
    """Forward passes of `model`, whose linear layers read `adapters`."""

    def __init__(self, model: Llama | GPT2, adapters: Placement, sampler: Sampler, options: EngineOptions) -> None:
        self.model, self.adapters, self.sampler, self.options = model, adapters, sampler, options

    def begin(self, max_num_seqs: int, shares: list[Share]) -> None:
        """Nothing is kept from step to step."""

    def capture(self, num_rows: int, on_progress: Callable[[str], None]) -> None:
        """Nothing is captured."""

    def forget(self, share: Share) -> None:
        """Nothing is kept from step to step."""

    def launch(self, batch: Batch, share: Share, timer: Callable[[], float]) -> Started:
        options, max_model_len = self.options, self.model.config.max_model_len
        tables = block_tables(batch, options.block_size, share.first_block) if options.use_cache else None
        seats = np.arange(len(batch.sequences))
        inputs = step_inputs(batch, tables, seats, max_model_len=max_model_len, first_slot=share.first_slot)
        self.sampler.set_step(compress(batch.sequences, inputs.samples))
        token_ids, positions = torch.from_numpy(inputs.token_ids), torch.from_numpy(inputs.positions)
        attention, rows = plain(self.model, inputs, options.block_size), torch.from_numpy(inputs.sampled_rows)
        arrays = self.adapters.tables(inputs.adapter_slots, inputs.sampled_slots)
        self.adapters.set_step({name: torch.from_numpy(array) for name, array in arrays.items()}, arrays)
        prepared_time = timer()
        hidden = self.model(token_ids, positions, attention).index_select(0, rows)
        self.adapters.set_head_step()
        sampled = self.sampler.choose(self.model.logits(hidden)).tolist()
        return Done(sampled, device=timer() - prepared_time), inputs.samples.tolist(), prepared_time
