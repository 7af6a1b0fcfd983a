"""The steps that an engine runs before anything is timed, so that all that is loaded or compiled once is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from framework.core import Batch, Request, Sequence

# Prompt tokens: one for each size of the blocks' kernels, and one beyond
LENGTHS = (16, 1, 2, 32, 64, 128, 256, 600)
MANY_ROWS = 257  # blocks are compiled, and the kernels of adapters have larger tiles
BATCHES = (16, 32, 64, 128)  # prompts of one token: one for each size of the vocabulary head's


def most_rows(requests: Iterable[Request], max_num_seqs: int, max_num_batched_tokens: int | None) -> int:
    """The most rows that a step of `max_num_seqs` sequences and `max_num_batched_tokens` new tokens can have.

    A preempted sequence computes its output again with its prompt, and static batches pad to the longest.
    """
    lengths = [request.num_prompt_tokens + request.num_output_tokens for request in requests]
    num_rows = min(max_num_seqs, len(lengths)) * max(lengths, default=0)
    if max_num_batched_tokens is not None:
        num_rows = min(num_rows, max_num_batched_tokens)
    return max(max_num_seqs, num_rows)


def warm_up_sizes(
    max_num_seqs: int, max_model_len: int, num_rows: int, *, num_blocks: int, block_size: int, on_gpu: bool
) -> list[tuple[int, int]]:
    """How many prompts of how many tokens, the most tokens last.

    On a GPU every number of rows that has kernels of its own, as far as a step may have up to `num_rows`.
    """
    capacity = max(1, min(num_blocks * block_size, max_model_len) - 1)
    if not on_gpu:
        return [(1, min(LENGTHS[0], capacity))]
    sizes = {(1, min(length, capacity, num_rows)) for length in LENGTHS}
    sizes |= {(min(num_seqs, max_num_seqs, num_blocks), 1) for num_seqs in BATCHES}
    if num_rows >= MANY_ROWS:
        length = min(MANY_ROWS, capacity)
        most = max(1, min(max_num_seqs, num_blocks // (length // block_size + 1)))
        sizes.add((min(most, MANY_ROWS // length + 1), length))
    return sorted(sizes, key=lambda size: (size[0] * size[1], size))


def warm_up_steps(num_seqs: int, num_prompt_tokens: int, *, num_blocks: int, block_size: int) -> Iterator[Batch]:
    """Prompts, the same as chunks behind their first token, a decode step, a mixed one; as far as the blocks reach."""
    blocks_each = min(num_prompt_tokens // block_size + 1, num_blocks // num_seqs)
    sequences = [Sequence(Request(index, 0.0, num_prompt_tokens, 2)) for index in range(num_seqs)]
    for index, sequence in enumerate(sequences):
        sequence.prompt_token_ids = np.zeros(num_prompt_tokens, dtype=np.int32)
        sequence.block_table = list(range(index * blocks_each, (index + 1) * blocks_each))
    for start, num_tokens in ((0, num_prompt_tokens), (1, num_prompt_tokens - 1), (num_prompt_tokens, 1)):
        if 0 < num_tokens <= blocks_each * block_size - start:
            num_decode = num_seqs if start == num_prompt_tokens else 0
            starts, lengths = [start] * num_seqs, [num_tokens] * num_seqs
            yield Batch(sequences, starts, lengths, num_seqs * num_tokens - num_decode, num_decode)
        for sequence in sequences:
            sequence.output_token_ids = [0]
    num_decode = num_seqs // 2
    if num_decode and num_prompt_tokens < blocks_each * block_size:
        starts = [num_prompt_tokens] * num_decode + [0] * (num_seqs - num_decode)
        lengths = [1] * num_decode + [num_prompt_tokens] * (num_seqs - num_decode)
        yield Batch(sequences, starts, lengths, sum(lengths) - num_decode, num_decode)
