"""One step's inputs as numpy arrays: which tokens at which positions, and who samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from framework.core import Batch, Sequence
from framework.kernels.arrays import IntArray
from framework.kernels.attention import flatten_slots

PAD_TOKEN = 0
ON_DEVICE = -1  # instead of a token that only the device may know


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The flattened batch: arrays of one entry per token, or per sequence."""

    token_ids: IntArray  # per token, like positions and adapter_slots
    positions: IntArray
    query_lens: IntArray
    context_lens: IntArray
    padding: IntArray
    tables: IntArray | None  # (any, max_blocks) block tables; None without a KV cache
    seats: IntArray  # (num_seqs,) the row of `tables` of each sequence
    samples: npt.NDArray[np.bool_]  # whether the sequence's last token is reached
    adapter_slots: IntArray  # of each token; 0: none
    num_decode: int  # sequences that stand first and decode, with ON_DEVICE as their token

    @property
    def sampled_rows(self) -> IntArray:
        """The rows of the flattened batch to sample from."""
        rows: IntArray = (np.cumsum(self.query_lens) - 1)[self.samples]
        return rows

    @property
    def sampled_slots(self) -> IntArray:
        """The adapter slots of these rows."""
        return self.adapter_slots[self.sampled_rows]

    @property
    def block_tables(self) -> IntArray | None:
        """(num_seqs, blocks of the longest context)."""
        if self.tables is None:
            return None
        tables: IntArray = self.tables[self.seats]
        return tables

    @property
    def lengths(self) -> tuple[IntArray, IntArray, IntArray]:
        return self.query_lens, self.context_lens, self.padding


def step_inputs(
    batch: Batch,
    tables: IntArray | None,
    seats: IntArray,
    *,
    max_model_len: int,
    num_decode: int = 0,
    first_slot: int = 0,
) -> StepInputs:
    """Inputs for slots [start, start + num_tokens) of each sequence, or [0, end) without `tables`: there is no cache.

    Row `seats[i]` of `tables` is the block table of sequence i. The device has the tokens of the first `num_decode`.
    `first_slot` is added to the slots of adapters.
    """
    sequences = batch.sequences
    starts = np.array(batch.starts)
    context_lens = starts + np.array(batch.num_tokens)
    samples = context_lens >= np.array([sequence.num_tokens for sequence in sequences])
    if tables is None:
        starts = np.zeros_like(starts)
    query_lens = context_lens - starts
    assert query_lens.min() > 0, f"a sequence without new tokens in {sequences}"
    padding = np.array([sequence.num_padding for sequence in sequences])
    token_ids = np.full(query_lens.sum(), ON_DEVICE)
    row = num_decode
    for sequence, start, end in zip(
        sequences[num_decode:], starts[num_decode:].tolist(), context_lens[num_decode:].tolist(), strict=True
    ):
        write_tokens(token_ids[row : row + end - start], sequence, start)
        row += end - start
    seq_index, slot_index = flatten_slots(query_lens, context_lens)
    # Only finished sequences, which stay in a static batch, can run past the model's positions
    positions = np.minimum(np.maximum(slot_index - padding[seq_index], 0), max_model_len - 1)
    adapter_slots = np.repeat(slots_of(sequences, first_slot), query_lens)
    return StepInputs(
        token_ids, positions, query_lens, context_lens, padding, tables, seats, samples, adapter_slots, num_decode
    )


def slots_of(sequences: list[Sequence], first_slot: int) -> IntArray:
    """(num_seqs,) the device's slots of their adapters; 0: none."""
    slots = np.array([sequence.adapter_slot for sequence in sequences])
    return np.where(slots > 0, slots + first_slot, 0) if first_slot else slots


def write_tokens(target: IntArray, sequence: Sequence, start: int) -> None:
    """Fill `target` with the tokens at slots [start, start + len(target))."""
    prompt, output = sequence.prompt_token_ids, sequence.output_token_ids
    assert prompt is not None, f"{sequence} was not added to the engine"
    first_output_slot = sequence.num_padding + len(prompt)
    if start >= first_output_slot and len(target) == 1:  # decode
        index = start - first_output_slot
        assert index < len(output) or sequence.is_finished, f"{sequence}'s token at slot {start} is still in flight"
        target[0] = output[min(index, len(output) - 1)]  # the seat of a finished sequence repeats its last token
        return
    end = start + len(target)
    num_pads = max(min(end, sequence.num_padding) - start, 0)
    target[:num_pads] = PAD_TOKEN
    prompt_part = prompt[max(start - sequence.num_padding, 0) : max(end - sequence.num_padding, 0)]
    target[num_pads : num_pads + len(prompt_part)] = prompt_part
    num_filled = num_pads + len(prompt_part)
    if num_filled < len(target):
        output_part = output[max(start - first_output_slot, 0) : end - first_output_slot]
        target[num_filled : num_filled + len(output_part)] = output_part
        target[num_filled + len(output_part) :] = output[-1]  # the seat of a finished sequence repeats its last token


def block_tables(batch: Batch, block_size: int, first_block: int = 0) -> IntArray:
    """(num_seqs, blocks of the longest context), as far as each sequence has slots that are computed.

    `first_block` is added to the sequences' blocks.
    """
    context_lens = np.array(batch.starts) + np.array(batch.num_tokens)
    num_blocks = (-(-context_lens // block_size)).tolist()
    tables = np.zeros((len(num_blocks), max(num_blocks)), dtype=np.int64)
    for row, (sequence, num) in enumerate(zip(batch.sequences, num_blocks, strict=True)):
        table = sequence.block_table
        assert len(table) >= num, f"{sequence} needs {num} blocks and has {len(table)}"
        tables[row, :num] = table[:num]
    tables += first_block
    return tables
