"""Static batching, as Hugging Face `generate` does it: padded to the longest prompt, run until all finish.

The padding and the seats of finished sequences are part of every Batch, so the engine really computes them.
"""

from collections import deque
from math import inf, isfinite

from framework.core import Batch, Request, Sequence, SlotUse
from framework.scheduler.adapter_ranges import make_slots
from framework.scheduler.batches import make_batch
from framework.scheduler.block_manager import BlockManager
from framework.scheduler.memory_use import num_filled_slots


class StaticScheduler:
    """Starts a batch once `max_num_seqs` requests wait, or the oldest has waited `max_wait` seconds.

    KV blocks for the longest prompt plus the longest output are reserved for every seat when the batch starts; where
    they do not suffice for `max_num_seqs` seats, or these name more adapters than there are slots, it is smaller. So it
    takes no `reservation`, and nobody is ever preempted. With `blocks_per_adapter` an adapter's slot is so many of the
    KV blocks (0: it has memory of its own).
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        max_num_seqs: int = 8,
        max_wait: float = 0.1,
        num_adapter_slots: int = 0,
        blocks_per_adapter: int = 0,
    ) -> None:
        if max_num_seqs < 1:
            raise ValueError(f"max_num_seqs must be at least 1, not {max_num_seqs}")
        if not (isfinite(max_wait) and max_wait >= 0):
            raise ValueError(f"max_wait must be a finite number of seconds, at least 0, not {max_wait}")
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = None
        self.max_wait = max_wait
        self.blocks = BlockManager(num_blocks, block_size)
        self.adapters = make_slots(num_adapter_slots, None, self.blocks, blocks_per_adapter)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # the seats, finished or not
        self.wake_time = inf

    @property
    def num_unfinished(self) -> int:
        return len(self.waiting) + sum(not sequence.is_finished for sequence in self.running)

    @property
    def num_used_blocks(self) -> int:
        return self.blocks.num_used

    @property
    def num_cached_blocks(self) -> int:
        return self.blocks.num_cached

    @property
    def num_adapter_blocks(self) -> int:
        return self.blocks.num_adapter_blocks

    @property
    def slot_use(self) -> SlotUse:
        """Padding is lost, and so is all that finished sequences hold."""
        blocks = self.blocks
        running = [sequence for sequence in self.running if not sequence.is_finished]
        num_tokens = num_filled = 0
        for sequence in running:
            end = num_filled_slots(sequence)
            num_tokens += min(sequence.num_computed_tokens, end) - sequence.num_padding
            num_filled += end - sequence.num_padding
        num_lost = blocks.num_used * blocks.block_size - num_filled
        return SlotUse(num_tokens, num_filled - num_tokens, num_lost, blocks.num_empty * blocks.block_size)

    def check(self, request: Request) -> None:
        self.blocks.check(request, self.adapters.num_blocks_of(request))

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self, now: float) -> Batch | None:
        if self.running:
            return self._decode()
        self.wake_time = inf
        if not self.waiting:
            return None
        deadline = self.waiting[0].arrival_time + self.max_wait
        if len(self.waiting) < self.max_num_seqs and now < deadline:
            self.wake_time = deadline
            return None
        return self._start(now)

    def postprocess(self, batch: Batch, token_ids: list[int | None], now: float) -> int:
        num_delivered = 0
        for sequence, token_id in zip(batch.sequences, token_ids, strict=True):
            if not sequence.is_finished:
                assert token_id is not None
                num_delivered += 1
                sequence.append(token_id, now)
        if all(sequence.is_finished for sequence in self.running):
            for sequence in self.running:
                self.blocks.release(sequence)
                self.adapters.release(sequence)
            self.running = []
        return num_delivered

    def _decode(self) -> Batch | None:
        """One more slot for every seat, finished or not; None while the last tokens are in a step in flight."""
        if all(sequence.num_unscheduled_tokens <= 0 for sequence in self.running):
            return None
        return self._padded(make_batch(self.running))

    def _start(self, now: float) -> Batch:
        longest_prompt, num_slots, num_seats = self._size_batch()
        for _ in range(num_seats):
            sequence = self.waiting.popleft()
            sequence.num_padding = longest_prompt - sequence.request.num_prompt_tokens
            sequence.scheduled_time = now
            self.adapters.admit(sequence)
            self.running.append(sequence)
        for sequence in self.running:  # once the adapters have theirs: before, every range of blocks was free
            self.blocks.grow(sequence, num_slots)
        batch = make_batch([], [(sequence, longest_prompt) for sequence in self.running])
        batch.adapter_loads = self.adapters.take_loads()
        return self._padded(batch)

    def _padded(self, batch: Batch) -> Batch:
        batch.num_padding = sum([sequence.num_padding for sequence in batch.sequences])
        return batch

    def _size_batch(self) -> tuple[int, int, int]:
        """(longest prompt, slots per seat, seats) of the largest first-come batch that fits the cache and the slots."""
        longest_prompt = longest_output = 0
        adapter_ids: set[str] = set()
        fitting = (0, 0, 0)
        for num_seats in range(1, min(self.max_num_seqs, len(self.waiting)) + 1):
            request = self.waiting[num_seats - 1].request  # a deque of at most max_num_seqs looked at: cheap
            longest_prompt = max(longest_prompt, request.num_prompt_tokens)
            longest_output = max(longest_output, request.num_output_tokens)
            num_slots = longest_prompt + longest_output
            if request.adapter_id is not None:
                adapter_ids.add(request.adapter_id)
            if 0 < self.adapters.num_slots < len(adapter_ids):
                break
            num_adapter_blocks = len(adapter_ids) * self.adapters.blocks_per_adapter
            if num_seats * self.blocks.num_blocks_for(num_slots) + num_adapter_blocks > self.blocks.num_blocks:
                break
            fitting = (longest_prompt, num_slots, num_seats)
        return fitting
