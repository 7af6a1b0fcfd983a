"""Steps on a GPU with prompts, whole or in chunks, and rows that decode beside them: laid out by the host.

To launch their kernels one by one takes the host 10 to 20 ms for 16 to 32 layers, however few rows there are: so small
ones are replayed from captured graphs, one for each number of rows and any mix inside.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framework.engine.torch_engine.adapters import Placement
from framework.engine.torch_engine.graphs import capture, capturing
from framework.engine.torch_engine.inputs import ON_DEVICE, StepInputs
from framework.engine.torch_engine.packed import Packed
from framework.engine.torch_engine.seats import SeatTables
from framework.engine.torch_engine.upload import upload
from framework.kernels.arrays import IntArray
from framework.kernels.attention import Attention, plain_attention
from framework.kernels.gpu_attention import FLASH_DTYPES, FlashAttention, MixedAttention, flash_segments, is_supported
from framework.kernels.mixed_inputs import MixedSizes, mixed_inputs
from framework.kernels.paged_decode import parts_wanted
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama

MakeAttention = Callable[[dict[str, Tensor]], Attention]  # of a step's arrays on the device
SIZES = (16, 32, 64, *range(128, 512, 64), *range(512, 2049, 128))  # rows; more keep any device busy


def check_captured(given: str, num_rows: int) -> None:
    """ValueError for more rows than graphs hold, which are asked for by name; `given` is what asks for so many."""
    if num_rows > SIZES[-1]:
        raise ValueError(
            f"{given} is more than the {SIZES[-1]:,} tokens of the largest step that is captured, and "
            "engine.cuda_graphs=true asks for graphs: lower it, or leave cuda_graphs out, and larger steps are "
            "launched kernel by kernel"
        )


@dataclass(frozen=True, slots=True)
class LaidOut:
    """A step that is ready: `send` brings its arrays to the device, `compute` takes them to the hidden states.

    These have a row per token, or more, and hold until the next step.
    """

    steps: MixedSteps
    arrays: dict[str, IntArray]
    compute: Callable[[dict[str, Tensor]], Tensor]

    def send(self) -> dict[str, Tensor]:
        sent = upload(self.steps.device, self.arrays)
        self.steps.adapters.set_step(sent, self.arrays)
        return sent


class MixedSteps:
    """Forward passes of `model`, whose linear layers read `adapters`, over the sequences of `seats`.

    Without seats there is no cache, or none that the kernels read. A graph has room for as many sequences as there are
    seats for, and what it reads is at the same address every time.
    """

    def __init__(
        self,
        model: Llama | GPT2,
        adapters: Placement,
        seats: SeatTables | None,
        *,
        block_size: int,
        kv_dtype: torch.dtype,
    ) -> None:
        config, dtype = model.config, model.norm.weight.dtype
        self.model, self.adapters, self.seats, self.block_size = model, adapters, seats, block_size
        self.device = model.norm.weight.device
        self.has_kernels = dtype in FLASH_DTYPES and is_supported(config.head_dim, kv_dtype)
        self.is_replayed = False  # whether graphs are used: not while what runs without them is warmed
        self.sizes: list[int] = []  # those that are captured
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool: Any = None  # the memory that they share
        if seats is not None:
            self._most = self._sizes(SIZES[-1], seats.max_num_seqs)
            rows = dict.fromkeys(("token_ids", "positions"), (SIZES[-1],))
            self._read = Packed(rows | self._most.shapes, self.device)  # by the graphs

    def lay_out(self, inputs: StepInputs, arrays: dict[str, IntArray]) -> LaidOut:
        """Everything of a step that the host does before the device begins; `arrays` are to be sent with it."""
        num_rows = len(inputs.token_ids)
        size = next((size for size in self.sizes if num_rows <= size), None) if self.is_replayed else None
        adapter_slots = np.pad(inputs.adapter_slots, (0, 0 if size is None else size - num_rows))
        arrays = arrays | self.adapters.tables(adapter_slots, inputs.sampled_slots)
        rows = {"token_ids": inputs.token_ids, "positions": inputs.positions}
        if size is not None:
            self._read.fill(rows | self._mixed(inputs, replace(self._most, num_rows=size)))
            return LaidOut(self, arrays, partial(self._replay, size))
        own, make_attention = self._eager(inputs)
        return LaidOut(self, arrays | rows | own, partial(self._launch, make_attention))

    @torch.inference_mode()
    def capture(self, max_tokens: int, on_progress: Callable[[str], None]) -> None:
        """Run the sizes that steps of up to `max_tokens` need and capture them, if they have not been.

        No row is anybody's, so no cache slot is written.
        """
        sizes = [size for size in SIZES[: bisect_left(SIZES, max_tokens) + 1] if size not in self._graphs]
        if not self.has_kernels or not sizes:
            return
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        nothing = np.zeros(1, dtype=np.int64)
        with capturing():
            for index, size in enumerate(reversed(sizes)):  # the largest first: the others reuse its memory
                on_progress(f"prompts and mixed steps, size {index + 1} of {len(sizes)}")
                self._read.fill({"slots": np.full(size, -1), "num_items": nothing, "num_tiles": nothing})
                self._read.send()
                tables = self.adapters.tables(np.zeros(size, dtype=np.int64), nothing)
                self.adapters.set_step(upload(self.device, tables), tables)
                self._graphs[size] = capture(partial(self._forward, size), self._pool)
        self.sizes = sorted(self._graphs)

    def _replay(self, size: int, sent: dict[str, Tensor]) -> Tensor:
        self._read.send()
        graph, hidden = self._graphs[size]
        graph.replay()
        return hidden

    def _forward(self, size: int) -> Tensor:
        """The step of `size` rows that was sent last."""
        read, num_decode = self._read.on_device, min(size, self._most.num_seqs)
        rows = {name: read[name][:size] for name in ("token_ids", "positions", "slots")}
        decode = {name: read[name][:num_decode] for name in ("decode_seats", "decode_lens", "decode_padding")}
        attention = self._mixed_attention(read | rows | decode)
        return self._compute(rows["token_ids"], rows["positions"], decode["decode_seats"], attention)

    def _launch(self, make_attention: MakeAttention, sent: dict[str, Tensor]) -> Tensor:
        return self._compute(sent["token_ids"], sent["positions"], sent["decode_seats"], make_attention(sent))

    def _compute(self, token_ids: Tensor, positions: Tensor, decode_seats: Tensor, attention: Attention) -> Tensor:
        if len(decode_seats):
            assert self.seats is not None
            first = token_ids[: len(decode_seats)]
            first.copy_(torch.where(first == ON_DEVICE, self.seats.last_tokens[decode_seats], first))
        hidden: Tensor = self.model(token_ids, positions, attention)
        return hidden

    def _eager(self, inputs: StepInputs) -> tuple[dict[str, IntArray], MakeAttention]:
        """What attention needs on the device, and what makes it of that."""
        decode_seats = {"decode_seats": inputs.seats[: inputs.num_decode]}
        if self.has_kernels and inputs.tables is None and not self.model.config.has_window:
            starts, longest = flash_segments(inputs.query_lens, inputs.padding)
            return decode_seats | {"starts": starts}, lambda sent: FlashAttention(sent["starts"], longest)
        if self.has_kernels and self.seats is not None:
            sizes = self._sizes(len(inputs.token_ids), self.seats.max_num_seqs)
            return self._mixed(inputs, sizes), self._mixed_attention
        return decode_seats, lambda sent: plain(self.model, inputs, self.block_size)

    def _mixed(self, inputs: StepInputs, sizes: MixedSizes) -> dict[str, IntArray]:
        assert inputs.tables is not None
        return mixed_inputs(
            *inputs.lengths,
            inputs.tables,
            inputs.seats,
            sizes,
            num_decode=inputs.num_decode,
            block_size=self.block_size,
        )

    def _mixed_attention(self, read: dict[str, Tensor]) -> Attention:
        """From the arrays of `mixed_inputs`, on the device."""
        assert self.seats is not None
        decode = (read["decode_seats"], read["decode_lens"], read["decode_padding"])
        items, tiles = read["items"].view(3, -1), read["tiles"].view(5, -1)
        tables = (items, read["num_items"], tiles, read["num_tiles"])
        return MixedAttention(self.seats.tables, read["slots"], *decode, *tables, self.block_size)

    def _sizes(self, num_rows: int, num_seqs: int) -> MixedSizes:
        config = self.model.config
        num_parts = parts_wanted(config.num_kv_heads, self.device)
        return MixedSizes(num_rows, num_seqs, config.num_heads // config.num_kv_heads, num_parts)


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
