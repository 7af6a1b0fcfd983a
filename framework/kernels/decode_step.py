"""The ends of a decode step whose state lives on the device: where each row's token comes from, and where it goes.

Two launches where PyTorch would need about fifteen, which would be 5% of a small model's step.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import torch
from torch import Tensor

from framework.kernels.triton_support import check_triton, jit, jit_for_any, tl, triton

VOCABULARY_BLOCK = 2048
NO_TOKEN = -1  # instead of a row's token, where its logits are not all finite: it reaches the host with the others


def plain_begin_rows(
    rows: Tensor, tables: Tensor, last_tokens: Tensor, *, block_size: int, max_position: int
) -> tuple[Tensor, Tensor]:
    """Token ids and positions of the new slots, (num_rows,) int64 each, once their blocks are in the tables.

    rows (4, num_rows) int32 are seats, context lengths with the new slot (0: an empty row), padding, and the block of
    the new slot. tables (num_seats, max_blocks) int32 and last_tokens (num_seats,) int64 have one row per seat.
    Positions count from the end of the padding, at most max_position.
    """
    seats, context_lens, padding, new_blocks = rows
    last_slots = (context_lens - 1).clamp(min=0)
    tables[seats.long(), (last_slots // block_size).long()] = new_blocks
    return last_tokens[seats.long()], (last_slots - padding).clamp(0, max_position).long()


def begin_rows(
    rows: Tensor, tables: Tensor, last_tokens: Tensor, *, block_size: int, max_position: int
) -> tuple[Tensor, Tensor]:
    """plain_begin_rows as one Triton launch."""
    check_triton("begin_rows")
    num_rows = rows.shape[1]
    # Apart, so that both are aligned whatever the number of rows: other alignments compile other kernels
    token_ids, positions = (torch.empty(num_rows, dtype=torch.int64, device=rows.device) for _ in range(2))
    _begin_rows_kernel[(triton.cdiv(num_rows, 128),)](
        rows, tables, last_tokens, token_ids, positions, num_rows, rows.stride(0), tables.stride(0), max_position,
        BLOCK_SIZE=block_size, BLOCK=128, num_warps=4,
    )  # fmt: skip
    return token_ids, positions


def plain_finish_rows(logits: Tensor, seats: Tensor, sampled: Tensor, last_tokens: Tensor) -> None:
    """Write each row's largest logit's index, the first of equals, to sampled[row] and last_tokens[seats[row]].

    Where a row's logits are not all finite sampled has NO_TOKEN, and last_tokens any.
    """
    tokens = tokens_or_none(logits, logits.argmax(dim=-1))
    sampled[: len(logits)] = tokens
    last_tokens[seats.long()] = tokens.clamp(min=0)


def tokens_or_none(logits: Tensor, tokens: Tensor) -> Tensor:
    """`tokens` (num_rows,), NO_TOKEN where the row of logits (num_rows, vocab_size) has a NaN or an infinity."""
    return tokens.where(logits.sum(dim=-1, dtype=torch.float32).isfinite(), NO_TOKEN)


def finish_rows(logits: Tensor, seats: Tensor, sampled: Tensor, last_tokens: Tensor) -> None:
    """plain_finish_rows in two Triton launches: the largest of each block of the vocabulary, then of these."""
    check_triton("finish_rows")
    num_rows, vocab_size = logits.shape
    num_blocks = triton.cdiv(vocab_size, VOCABULARY_BLOCK)
    values = torch.empty((num_rows, num_blocks), dtype=torch.float32, device=logits.device)
    indices = torch.empty((num_rows, num_blocks), dtype=torch.int32, device=logits.device)
    _largest_kernel[(num_blocks, num_rows)](
        logits, values, indices, vocab_size, logits.stride(0), num_blocks, BLOCK=VOCABULARY_BLOCK, num_warps=4
    )
    _finish_rows_kernel[(num_rows,)](
        values, indices, seats, sampled, last_tokens, num_blocks, BLOCK=triton.next_power_of_2(num_blocks), num_warps=1
    )


@jit_for_any("num_rows")
def _begin_rows_kernel(
    rows, tables, last_tokens, token_ids, positions, num_rows, row_stride, table_stride, max_position,
    BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = row < num_rows
    seat = tl.load(rows + row, is_row, other=0).to(tl.int64)
    last_slot = tl.maximum(tl.load(rows + row_stride + row, is_row, other=0) - 1, 0)
    padding = tl.load(rows + 2 * row_stride + row, is_row, other=0)
    new_block = tl.load(rows + 3 * row_stride + row, is_row, other=0)
    tl.store(tables + seat * table_stride + last_slot // BLOCK_SIZE, new_block, is_row)
    tl.store(token_ids + row, tl.load(last_tokens + seat, is_row, other=0), is_row)
    tl.store(positions + row, tl.minimum(tl.maximum(last_slot - padding, 0), max_position).to(tl.int64), is_row)


@jit
def _largest_kernel(logits, values, indices, vocab_size, logits_stride, num_blocks, BLOCK: tl.constexpr):
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    token = block * BLOCK + tl.arange(0, BLOCK)
    is_token = token < vocab_size
    logit = tl.load(logits + row * logits_stride + token, is_token, other=0.0).to(tl.float32)
    logit = tl.where(tl.abs(logit) < float("inf"), logit, float("inf"))  # so that one maximum finds NaN and -inf too
    value, index = tl.max(tl.where(is_token, logit, float("-inf")), 0, return_indices=True)
    tl.store(values + row * num_blocks + block, value)
    tl.store(indices + row * num_blocks + block, block * BLOCK + index)


@jit
def _finish_rows_kernel(values, indices, seats, sampled, last_tokens, num_blocks, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCK)
    value = tl.load(values + row * num_blocks + block, block < num_blocks, other=float("-inf"))
    value, best = tl.max(value, 0, return_indices=True)
    token = tl.load(indices + row * num_blocks + best).to(tl.int64)
    tl.store(sampled + row, tl.where(value == float("inf"), -1, token))
    tl.store(last_tokens + tl.load(seats + row), token)
