"""Engines without a model: a step takes a time that the test chooses."""

from collections.abc import Callable
from itertools import count

from framework.core import Batch, Request, Sequence, StepResult


class FakeEngine:
    """Token ids are 0, 1, 2, … of each sequence; `step_time(batch)` gives the seconds a step takes."""

    max_model_len = 1 << 20

    def __init__(
        self, step_time: Callable[[Batch], float] = lambda batch: 0.1, num_blocks: int = 1000, block_size: int = 4
    ) -> None:
        self.step_time = step_time
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.timer = lambda: 0.0
        self.batches: list[tuple[str, list[int]]] = []

    def begin(self, requests: list[Request]) -> None:
        self.batches.clear()

    def step(self, batch: Batch) -> StepResult:
        token_ids: list[int | None] = []
        for sequence, num_tokens in zip(batch.sequences, batch.num_tokens, strict=True):
            end = sequence.num_computed_tokens + num_tokens
            assert end <= len(sequence.block_table) * self.block_size, f"{sequence} has no room for slot {end - 1}"
            token_ids.append(len(sequence.output_token_ids) if end >= sequence.num_tokens else None)
        self.batches.append((batch.phase, [sequence.request.request_id for sequence in batch.sequences]))
        return StepResult(token_ids, self.step_time(batch))


def requests_at(*rows: tuple[float, int, int]) -> list[Request]:
    """Requests from (arrival_time, num_prompt_tokens, num_output_tokens)."""
    ids = count()
    return [Request(next(ids), *row) for row in rows]


def check_blocks(sequences: list[Sequence], num_blocks: int) -> None:
    """No block belongs to two sequences."""
    held = [block for sequence in sequences for block in sequence.block_table]
    assert len(held) == len(set(held)) <= num_blocks
