"""Continuous batching: sequences join and leave at every step, prompts first (Orca, OSDI 2022; vLLM, SOSP 2023).

When the KV cache runs out, the sequence admitted last loses its blocks and is recomputed later.
"""

from collections import deque
from math import inf

from framework.core import Batch, Request, Sequence
from framework.scheduler.adapter_slots import AdapterSlots
from framework.scheduler.adapter_turns import AdapterTurns
from framework.scheduler.block_manager import BlockManager


class ContinuousScheduler:
    """First come, first served; the cost of a step grows with the running sequences, not with the waiting ones.

    A step is either a prefill of up to `max_num_batched_tokens` prompt tokens or a decode of all running sequences.
    A prompt longer than that budget is split over steps of its own. `watermark` is the share of the blocks that an
    admission leaves free, so that a new sequence is not preempted at once. The running sequences use up to `max_loras`
    adapters (None: as many as there are slots); a request whose adapter would be one too many keeps those behind it
    waiting too. With `prefetch` the adapters of the first waiting requests are brought to slots that nobody uses. With
    `adapter_cycle_time` (s) adapters take turns instead: then a step that has free seats costs O(adapters).
    """

    wake_time = inf

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 2048,
        watermark: float = 0.01,
        max_loras: int | None = None,
        prefetch: bool = True,
        adapter_cycle_time: float | None = None,
        num_adapter_slots: int = 0,
    ) -> None:
        if max_num_seqs < 1:
            raise ValueError(f"max_num_seqs must be at least 1, not {max_num_seqs}")
        if max_num_batched_tokens < 1:
            raise ValueError(f"max_num_batched_tokens must be at least 1, not {max_num_batched_tokens}")
        if not 0 <= watermark < 1:
            raise ValueError(f"watermark must be in [0, 1), not {watermark}")
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.blocks = BlockManager(num_blocks, block_size)
        self.adapters = AdapterSlots(num_adapter_slots, max_loras)
        self.waiting: deque[Sequence] | AdapterTurns = deque()
        self.turns: AdapterTurns | None = None
        if adapter_cycle_time is not None and num_adapter_slots:
            self.waiting = self.turns = AdapterTurns(self.adapters.max_loras, adapter_cycle_time)
        self.prefetch = prefetch
        self.num_reserved_blocks = int(watermark * num_blocks)
        self.running: list[Sequence] = []
        self.ending: list[Sequence] = []  # their last token is in a step in flight
        self.split: Sequence | None = None  # the sequence whose prompt is spread over several steps

    @property
    def num_unfinished(self) -> int:
        return len(self.waiting) + len(self.running) + len(self.ending)

    @property
    def num_used_blocks(self) -> int:
        return self.blocks.num_used

    def check(self, request: Request) -> None:
        self.blocks.check(request)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self, now: float) -> Batch | None:
        if self.turns is not None and len(self.running) < self.max_num_seqs:
            if self.waiting is not self.turns:  # a subclass has put them into an order of its own
                self.turns.refill(self.waiting)
                self.waiting = self.turns
            self.turns.update(self.adapters.num_users, now)
        batch = self._continue_prompt() or self._prefill(now) or self._decode()
        if batch is not None and self.adapters.num_slots:
            if self.prefetch:
                self.adapters.prefetch(self.waiting)
            batch.adapter_loads = self.adapters.take_loads()
        return batch

    def postprocess(self, batch: Batch, token_ids: list[int | None], now: float) -> int:
        num_delivered = 0
        any_finished = False
        for sequence, token_id in zip(batch.sequences, token_ids, strict=True):
            if token_id is None or sequence.is_finished:
                continue
            num_delivered += 1
            if sequence.append(token_id, now):
                any_finished = True
                self._retire(sequence)
        if any_finished:
            self.running = [sequence for sequence in self.running if not sequence.is_finished]
            self.ending = [sequence for sequence in self.ending if not sequence.is_finished]
        return num_delivered

    def _retire(self, sequence: Sequence) -> None:
        self.adapters.release(sequence)
        if sequence.block_table:
            self.blocks.release(sequence)
        else:  # a stop token came after the sequence was preempted
            self.waiting.remove(sequence)

    def _continue_prompt(self) -> Batch | None:
        if self.split is None:
            return None
        sequence, start = self.split, self.split.num_computed_tokens
        num_tokens = min(sequence.num_tokens - start, self.max_num_batched_tokens)
        if start + num_tokens == sequence.num_tokens:
            self.split = None
        return self._prefill_batch([sequence], [start], [num_tokens])

    def _prefill(self, now: float) -> Batch | None:
        sequences: list[Sequence] = []
        num_tokens: list[int] = []
        budget = self.max_num_batched_tokens
        while self._can_admit(budget, alone=not sequences):
            sequence = self.waiting.popleft()
            self.blocks.grow(sequence, sequence.num_tokens)
            self.adapters.admit(sequence)
            self.running.append(sequence)
            if sequence.scheduled_time is None:
                sequence.scheduled_time = now
            if sequence.num_tokens > budget:
                self.split = sequence
            sequences.append(sequence)
            num_tokens.append(min(sequence.num_tokens, budget))
            budget -= num_tokens[-1]
        return self._prefill_batch(sequences, [0] * len(sequences), num_tokens) if sequences else None

    def _prefill_batch(self, sequences: list[Sequence], starts: list[int], num_tokens: list[int]) -> Batch:
        for sequence, num in zip(sequences, num_tokens, strict=True):
            sequence.num_computed_tokens += num
            if sequence is not self.split:
                sequence.num_unscheduled_tokens -= 1
        self._set_ending_apart()
        return Batch(sequences, starts, num_tokens, num_prefill_tokens=sum(num_tokens), num_decode_tokens=0)

    def _set_ending_apart(self) -> None:
        self.ending += [sequence for sequence in self.running if not sequence.num_unscheduled_tokens]
        self.running = [sequence for sequence in self.running if sequence.num_unscheduled_tokens]

    def _can_admit(self, budget: int, alone: bool) -> bool:
        if not self.waiting or len(self.running) >= self.max_num_seqs:
            return False
        first = self.waiting[0]
        if not self.adapters.can_admit(first) or (self.turns is not None and not self.turns.has_turn(first)):
            return False
        num_tokens = first.num_tokens
        if num_tokens > budget and not alone:
            return False
        reserved = self.num_reserved_blocks if self.running else 0
        return self.blocks.num_blocks_for(num_tokens) + reserved <= self.blocks.num_free

    def _decode(self) -> Batch | None:
        block_size = self.blocks.block_size
        for sequence in self.running.copy():
            if sequence.num_computed_tokens == len(sequence.block_table) * block_size:
                self._add_block(sequence)
        sequences = self.running.copy()
        if not sequences:
            return None
        starts = [sequence.num_computed_tokens for sequence in sequences]
        any_ending = False
        for sequence in sequences:
            sequence.num_computed_tokens += 1
            sequence.num_unscheduled_tokens -= 1
            if not sequence.num_unscheduled_tokens:
                any_ending = True
        if any_ending:
            self._set_ending_apart()
        return Batch(sequences, starts, [1] * len(starts), num_prefill_tokens=0, num_decode_tokens=len(starts))

    def _add_block(self, sequence: Sequence) -> None:
        """Preempts the sequences admitted last until a block is free; this one too, if nobody came after it."""
        while not self.blocks.free and sequence.num_computed_tokens:
            self._preempt()
        if sequence.num_computed_tokens:
            sequence.block_table.append(self.blocks.free.pop())

    def _preempt(self) -> None:
        sequence = self.running.pop()
        self.blocks.release(sequence)
        self.adapters.release(sequence)
        sequence.num_computed_tokens = 0
        sequence.num_preemptions += 1
        self.waiting.appendleft(sequence)
