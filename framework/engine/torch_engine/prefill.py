"""Steps with prompts: laid out by the host and, on a GPU where they are small, replayed from a captured graph.

To launch a prompt's kernels one by one takes the host 10 to 20 ms for 16 to 32 layers, however few its tokens are:
where the device is faster than that, a study would compare what its arms cost the host.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framework.engine.torch_engine.adapters import Placement
from framework.engine.torch_engine.inputs import StepInputs
from framework.engine.torch_engine.upload import upload
from framework.kernels.arrays import IntArray
from framework.kernels.attention import Attention, plain_attention
from framework.kernels.gpu_attention import FLASH_DTYPES, FlashAttention, flash_attention, flash_inputs, is_supported
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama

SIZES = (16, 32, 64, *range(128, 512, 64), *range(512, 2049, 128))  # rows; more keep any device busy
READ = ("token_ids", "positions", "slots", "query_starts")  # by a graph, beside what it reads of the adapters


class PromptSteps:
    """Forward passes of `model` over whole prompts and chunks on a GPU.

    Those over whole prompts may be captured, one per number of rows, of which the last may be nobody's; what a graph
    reads is at the same address every time. `adapters` are those that the model's linear layers read.
    """

    def __init__(self, model: Llama | GPT2, adapters: Placement, block_size: int, kv_dtype: torch.dtype) -> None:
        self.model, self.adapters, self.block_size = model, adapters, block_size
        self.device, dtype = model.norm.weight.device, model.norm.weight.dtype
        self.has_flash = dtype in FLASH_DTYPES and is_supported(
            model.config.head_dim, kv_dtype, model.config.has_window
        )
        self.is_replayed = False  # whether graphs are used: not while what runs without them is warmed
        self.sizes: list[int] = []  # those that are captured
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool: Any = None  # the memory that they share
        self._read = {name: torch.zeros(SIZES[-1], dtype=torch.int32, device=self.device) for name in READ}

    def lay_out(
        self, inputs: StepInputs, arrays: dict[str, IntArray]
    ) -> tuple[dict[str, Tensor], Callable[[], Tensor]]:
        """Send the step with `arrays` to the device; returns these there, and what computes the hidden states.

        They have a row per token, or more, and hold until the next step.
        """
        size, lens = None, (0, 0)
        if self.has_flash:
            flash_arrays, lens = flash_inputs(*inputs.lengths, inputs.block_tables, self.block_size)
            size = size_for(inputs, flash_arrays, self.sizes) if self.is_replayed else None
            if size is not None:
                inputs, flash_arrays = with_spare_rows(inputs, flash_arrays, size)
            arrays = arrays | flash_arrays
        arrays = arrays | {"token_ids": inputs.token_ids, "positions": inputs.positions}
        arrays |= self.adapters.tables(inputs.adapter_slots, inputs.sampled_slots)
        sent = upload(self.device, arrays)
        self.adapters.set_step(sent, arrays)
        if size is not None:
            return sent, partial(self._replay, size, sent)
        attention: Attention = (
            flash_attention(sent, *lens) if self.has_flash else plain(self.model, inputs, self.block_size)
        )
        return sent, partial(self.model, sent["token_ids"], sent["positions"], attention)

    @torch.inference_mode()
    def capture(self, max_tokens: int, on_progress: Callable[[str], None]) -> None:
        """Run the sizes that steps of up to `max_tokens` need and capture them, if they have not been.

        All rows are spare, so no cache slot is written.
        """
        sizes = [size for size in SIZES[: bisect_left(SIZES, max_tokens) + 1] if size not in self._graphs]
        if not self.has_flash or not sizes:
            return
        self._read["slots"].fill_(-1)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        for index, size in enumerate(reversed(sizes)):  # the largest first: the others reuse its memory
            on_progress(f"prompts, size {index + 1} of {len(sizes)}")
            self._read["query_starts"].fill_(size)[0] = 0
            tables = self.adapters.tables(np.zeros(size, dtype=np.int64), np.zeros(1, dtype=np.int64))
            self.adapters.set_step(upload(self.device, tables), tables)
            self._forward(size)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                hidden = self._forward(size)
            self._graphs[size] = graph, hidden
        self.sizes = sorted(self._graphs)

    def _replay(self, size: int, sent: dict[str, Tensor]) -> Tensor:
        self._write(sent)
        graph, hidden = self._graphs[size]
        graph.replay()
        return hidden

    def _write(self, sent: dict[str, Tensor]) -> None:
        for name in READ:
            self._read[name][: len(sent[name])].copy_(sent[name])

    def _forward(self, size: int) -> Tensor:
        token_ids, positions, slots = (self._read[name][:size] for name in READ[:3])
        starts = self._read["query_starts"][: max_segments(size) + 1]
        hidden: Tensor = self.model(token_ids, positions, FlashAttention(slots, starts, starts, size, size, None))
        return hidden


def max_segments(size: int) -> int:
    """How many prompts, paddings and spare rows together: FlashAttention launches programs for all of them."""
    return min(32, max(8, size // 8))


def size_for(inputs: StepInputs, flash_arrays: dict[str, IntArray], sizes: list[int]) -> int | None:
    """The smallest size that holds the step; None if it has too many rows or prompts, or reads what is cached."""
    if "read_slots" in flash_arrays:
        return None
    num_rows, num_segments = len(inputs.token_ids), len(flash_arrays["query_starts"])  # with the spare rows
    return next((size for size in sizes if num_rows <= size and num_segments <= max_segments(size)), None)


def with_spare_rows(
    inputs: StepInputs, flash_arrays: dict[str, IntArray], size: int
) -> tuple[StepInputs, dict[str, IntArray]]:
    """The same step with `size` rows: the spare ones have no slot and no adapter, and are a segment of their own."""
    num_spare = size - len(inputs.token_ids)
    rows = {name: np.pad(getattr(inputs, name), (0, num_spare)) for name in ("token_ids", "positions", "adapter_slots")}
    starts = flash_arrays["query_starts"]
    return replace(inputs, **rows), {
        "slots": np.pad(flash_arrays["slots"], (0, num_spare), constant_values=-1),
        "query_starts": np.append(starts, np.full(max_segments(size) + 1 - len(starts), size)),
    }


def plain(model: Llama | GPT2, inputs: StepInputs, block_size: int) -> Attention:
    """Attention in plain PyTorch for this step."""
    config, norm = model.config, model.norm.weight
    return plain_attention(
        *inputs.lengths,
        inputs.block_tables,
        block_size=block_size,
        num_queries_per_kv=config.num_heads // config.num_kv_heads,
        windows=config.layer_windows,
        dtype=norm.dtype,
        device=norm.device,
    )
