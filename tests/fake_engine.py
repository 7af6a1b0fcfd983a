"""Engines without a model: a step takes a time that the test chooses."""

from collections import deque
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING

from framework.contracts import Engine
from framework.core import Batch, Request, Sequence, StepResult


class FakeEngine:
    """Token ids are 0, 1, 2, … of each sequence; `step_time(batch)` gives the seconds a step takes."""

    max_model_len = 1 << 20
    num_adapter_slots = blocks_per_adapter = num_adapter_bytes = num_cache_bytes = 0

    def __init__(
        self,
        step_time: Callable[[Batch], float] = lambda batch: 0.1,
        num_blocks: int = 1000,
        block_size: int = 4,
        num_steps_ahead: int = 0,
        num_swap_blocks: int = 0,
    ) -> None:
        self.step_time = step_time
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_steps_ahead = num_steps_ahead
        self.num_swap_blocks = num_swap_blocks
        self.timer: Callable[[], float] | None = None
        self.on_progress = lambda message: None
        self.num_tokens: dict[Sequence, int] = {}  # sampled so far
        self.in_flight: deque[StepResult] = deque()
        self.batches: list[tuple[str, list[int]]] = []

    def refused_adapters(self, requests: list[Request]) -> dict[str, str]:
        return {}

    def begin(self, requests: list[Request], max_num_seqs: int, max_num_batched_tokens: int | None = None) -> None:
        self.batches.clear()

    def add(self, sequence: Sequence) -> None:
        pass

    def launch(self, batch: Batch) -> None:
        token_ids: list[int | None] = []
        for sequence, start, num_tokens in zip(batch.sequences, batch.starts, batch.num_tokens, strict=True):
            end = start + num_tokens
            assert end <= len(sequence.block_table) * self.block_size, f"{sequence} has no room for slot {end - 1}"
            num_sampled = self.num_tokens.get(sequence, 0)
            is_sampled = end >= sequence.num_tokens
            token_ids.append(num_sampled if is_sampled else None)
            self.num_tokens[sequence] = num_sampled + is_sampled
        self.batches.append((batch.phase, [sequence.request.request_id for sequence in batch.sequences]))
        self.in_flight.append(StepResult(token_ids, self.step_time(batch)))

    def collect(self) -> StepResult:
        return self.in_flight.popleft()


if TYPE_CHECKING:
    is_an_engine: Engine = FakeEngine()


def requests_at(*rows: tuple[float, int, int]) -> list[Request]:
    """Requests from (arrival_time, num_prompt_tokens, num_output_tokens)."""
    ids = count()
    return [Request(next(ids), *row) for row in rows]
