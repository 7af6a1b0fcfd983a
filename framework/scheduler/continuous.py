"""Continuous batching: sequences join and leave at every step (Orca, OSDI 2022; vLLM, SOSP 2023; Sarathi, OSDI 2024).

When the KV cache runs out, the sequence admitted last loses its blocks and is recomputed later.
"""

import sys
from collections import deque
from math import inf
from typing import Literal, get_args

from framework.core import Batch, Request, Sequence, SlotUse
from framework.scheduler.adapter_ranges import AdapterRanges
from framework.scheduler.adapter_slots import AdapterSlots
from framework.scheduler.adapter_turns import AdapterTurns
from framework.scheduler.block_manager import BlockManager
from framework.scheduler.memory_use import MemoryUse
from framework.scheduler.prefix_cache import Eviction, PrefixCache
from framework.scheduler.reservation import Reservation, check_reservation, promised_slots

Steps = Literal["prompts_first", "mixed", "alternate"]


class ContinuousScheduler:
    """First come, first served; the cost of a step grows with the running sequences, not with the waiting ones.

    A step computes up to `max_num_batched_tokens` new tokens (None: as many as `max_model_len`, the model's context).
    `steps` says which:

    - `prompts_first`: of prompts, while there are any; otherwise one decode token of every running sequence, however
      many these are.
    - `mixed`: one decode token of every running sequence, then prompts with what is left (vLLM's V1, Sarathi).
    - `alternate`: a step of prompts, then one of decode tokens, as long as there are both (Sarathi's ablation).

    A prompt goes on before the next one is admitted. It is cut where the budget ends. With `whole_prompts` it waits for
    a step that has room for all of it, and is cut only where that is too long for a step without other prompts. Its
    admission takes blocks for all of it. Nobody is admitted in a step that preempts.

    With `prefix_cache` full blocks are kept when their sequences end or are preempted, and taken by those whose tokens
    begin the same way; it says which free block is evicted first. What is found is not computed, and takes nothing of
    the budget. A block is found once the step that computes it is over, and a prompt's last token never is.

    `reservation` says for how many tokens an admission takes blocks: `paged` for those that there are (vLLM's), `max`
    for the model's context, `pow2` for the prompt and its output rounded up to the next power of two, `oracle` for the
    prompt and its true output (Orca's). With the last three nobody is ever preempted.

    `watermark` is the share of the blocks that an admission leaves free, so that a new sequence is not preempted at
    once. The running sequences use up to `max_loras` adapters (None: as many as there are slots); a request whose
    adapter would be one too many keeps those behind it waiting too. With `prefetch` the adapters of the first waiting
    requests are brought to slots that nobody uses. With `adapter_cycle_time` (s) adapters take turns instead: then a
    step that has free seats costs O(adapters). With `blocks_per_adapter` an adapter's slot is so many of the KV blocks
    (0: it has memory of its own).
    """

    wake_time = inf

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int | None = 2048,
        steps: Steps = "prompts_first",
        whole_prompts: bool = True,
        watermark: float = 0.01,
        max_loras: int | None = None,
        prefetch: bool = True,
        adapter_cycle_time: float | None = None,
        prefix_cache: Eviction | None = None,
        reservation: Reservation = "paged",
        num_adapter_slots: int = 0,
        blocks_per_adapter: int = 0,
        max_model_len: int | None = None,
    ) -> None:
        if max_num_seqs < 1:
            raise ValueError(f"max_num_seqs must be at least 1, not {max_num_seqs}")
        if not 0 <= watermark < 1:
            raise ValueError(f"watermark must be in [0, 1), not {watermark}")
        check_reservation(reservation, max_model_len)
        self.reservation, self.max_model_len = reservation, max_model_len
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = token_budget(max_num_batched_tokens, max_model_len, steps, max_num_seqs)
        self.steps, self.whole_prompts = steps, whole_prompts
        self.blocks = BlockManager(num_blocks, block_size)
        if prefix_cache is not None:
            self.blocks = PrefixCache(num_blocks, block_size, prefix_cache, has_adapters=num_adapter_slots > 0)
        self.use = MemoryUse(block_size)
        self.adapters = AdapterSlots(num_adapter_slots, max_loras)
        if blocks_per_adapter:
            self.adapters = AdapterRanges(num_adapter_slots, max_loras, self.blocks, blocks_per_adapter)
        self.waiting: deque[Sequence] | AdapterTurns = deque()
        self.turns: AdapterTurns | None = None
        if adapter_cycle_time is not None and num_adapter_slots:
            self.waiting = self.turns = AdapterTurns(self.adapters.max_loras, adapter_cycle_time)
        self.prefetch = prefetch
        self.num_reserved_blocks = int(watermark * num_blocks)
        self.running: list[Sequence] = []  # in the order of their admission
        self.ending: list[Sequence] = []  # their last token is in a step in flight
        self.split: Sequence | None = None  # the last of the running, if its prompt goes on in the next step
        self.was_of_prompts = False  # the step before
        self.has_preempted = False  # in this step

    @property
    def num_unfinished(self) -> int:
        return len(self.waiting) + len(self.running) + len(self.ending)

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
        return self.use.describe(self.blocks)

    def check(self, request: Request) -> None:
        num_adapter_blocks = self.adapters.num_blocks_of(request)
        self.blocks.check(request, num_adapter_blocks)
        if self.blocks.num_blocks_for(self._promised(request)) + num_adapter_blocks > self.blocks.num_blocks:
            context = f" ({self.max_model_len} tokens, the model's context)" if self.reservation == "max" else ""
            raise ValueError(
                f"scheduler.reservation={self.reservation} promises it more{context} than the KV cache, which has "
                f"{self.blocks.describe(num_adapter_blocks)} (raise engine.num_blocks, or lower model.max_model_len)"
            )

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self, now: float) -> Batch | None:
        if self.turns is not None and len(self.running) < self.max_num_seqs:
            if self.waiting is not self.turns:  # a subclass has put them into an order of its own
                self.turns.refill(self.waiting)
                self.waiting = self.turns
            self.turns.update(self.adapters.num_users, now)
        self.has_preempted = False
        batch = self._next_batch(now)
        self.was_of_prompts = batch is not None and batch.num_prefill_tokens > 0
        if batch is not None and self.adapters.num_slots:
            if self.prefetch:
                self.adapters.prefetch(self.waiting)
            batch.adapter_loads = self.adapters.take_loads()
        return batch

    def postprocess(self, batch: Batch, token_ids: list[int | None], now: float) -> int:
        self.blocks.keep(batch)
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

    def _next_batch(self, now: float) -> Batch | None:
        budget = self.max_num_batched_tokens
        if self.steps == "mixed":
            decoding = self._decoding()
            return self._batch(decoding, self._prompts(now, budget - len(decoding)))
        if self.steps == "alternate" and self.was_of_prompts:
            decoding = self._decoding()
            return self._batch(decoding, [] if decoding else self._prompts(now, budget))
        prompts = self._prompts(now, budget)
        return self._batch([] if prompts else self._decoding(), prompts)

    def _decoding(self) -> list[Sequence]:
        """The running sequences whose prompts are computed, each with room for one more token."""
        block_size = self.blocks.block_size
        decoding = self.running.copy() if self.split is None else self.running[:-1]
        for sequence in decoding:
            if sequence.num_computed_tokens == len(sequence.block_table) * block_size:
                self._grow(sequence)
        if self.has_preempted:
            decoding = self.running.copy() if self.split is None else self.running[:-1]
        return decoding

    def _prompts(self, now: float, budget: int) -> list[tuple[Sequence, int]]:
        """Prompts and how many tokens of each, at most `budget` together: the one that goes on, then new ones."""
        prompts = []
        if self.split is not None:
            sequence = self.split
            num_tokens = self._cut(sequence, budget)
            prompts.append((sequence, num_tokens))
            budget = 0 if self.whole_prompts else budget - num_tokens
        while self._can_admit(budget, alone=not prompts):
            sequence = self._admit(now)
            num_tokens = self._cut(sequence, budget)
            prompts.append((sequence, num_tokens))
            budget -= num_tokens
        return prompts

    def _cut(self, sequence: Sequence, budget: int) -> int:
        """How many tokens of the prompt the step computes; `split` is set to it if that is not all."""
        num_missing = sequence.num_tokens - sequence.num_computed_tokens
        self.split = sequence if num_missing > budget else None
        return min(num_missing, budget)

    def _batch(self, decoding: list[Sequence], prompts: list[tuple[Sequence, int]]) -> Batch | None:
        """The step of these; from now on what it computes counts as computed."""
        if not decoding and not prompts:
            return None
        any_ending = False
        starts = [sequence.num_computed_tokens for sequence in decoding]
        for sequence in decoding:
            sequence.num_computed_tokens += 1
            sequence.num_unscheduled_tokens -= 1
            if not sequence.num_unscheduled_tokens:
                any_ending = True
        sequences, num_tokens, num_decode = decoding, [1] * len(decoding), len(decoding)
        for sequence, num in prompts:
            sequences.append(sequence)
            starts.append(sequence.num_computed_tokens)
            num_tokens.append(num)
            sequence.num_computed_tokens += num
            if sequence is not self.split:
                sequence.num_unscheduled_tokens -= 1
                if not sequence.num_unscheduled_tokens:
                    any_ending = True
        if any_ending:
            self.ending += [sequence for sequence in self.running if not sequence.num_unscheduled_tokens]
            self.running = [sequence for sequence in self.running if sequence.num_unscheduled_tokens]
        num_computed = sum(num_tokens)
        self.use.num_computed += num_computed
        return Batch(sequences, starts, num_tokens, num_computed - num_decode, num_decode)

    def _can_admit(self, budget: int, alone: bool) -> bool:
        if not (self.waiting and budget) or self.has_preempted or len(self.running) >= self.max_num_seqs:
            return False
        first = self.waiting[0]
        if not self.adapters.can_admit(first) or (self.turns is not None and not self.turns.has_turn(first)):
            return False
        num_tokens, num_blocks = self.blocks.missing(first)
        num_blocks += self._num_promised_blocks(first) + self.adapters.num_missing_blocks(first)
        if self.whole_prompts and num_tokens > budget and not alone:
            return False
        reserved = self.num_reserved_blocks if self.running else 0
        return num_blocks + reserved <= self.blocks.num_free

    def _promised(self, request: Request) -> int:
        return promised_slots(request, self.reservation, self.max_model_len)

    def _num_promised_blocks(self, sequence: Sequence) -> int:
        """Blocks that it is promised beyond those of its tokens."""
        num_for = self.blocks.num_blocks_for
        return max(num_for(self._promised(sequence.request)) - num_for(sequence.num_tokens), 0)

    def _admit(self, now: float) -> Sequence:
        """Take the first of the waiting into the running, with blocks for all its tokens and what it is promised."""
        sequence = self.waiting.popleft()
        self.adapters.admit(sequence)
        self.blocks.admit(sequence)
        self.blocks.grow(sequence, self._promised(sequence.request))
        self.use.add(sequence)
        self.running.append(sequence)
        if sequence.scheduled_time is None:
            sequence.scheduled_time = now
            sequence.num_cached_tokens = sequence.num_computed_tokens
        return sequence

    def _grow(self, sequence: Sequence) -> None:
        """One block more; preempts those admitted last until one is free, this one too if nobody came after it."""
        while not self.blocks.num_free and sequence.num_computed_tokens:
            self._preempt()
        if sequence.num_computed_tokens:
            sequence.block_table.append(self.blocks.take())
            self.use.extend(sequence)

    def _preempt(self) -> None:
        sequence = self.running.pop()
        self.use.remove(sequence)
        self.blocks.release(sequence)
        self.adapters.release(sequence)
        sequence.num_computed_tokens = 0
        sequence.num_preemptions += 1
        self.waiting.appendleft(sequence)
        self.split, self.has_preempted = None, True  # it can only have been the last of the running

    def _retire(self, sequence: Sequence) -> None:
        self.adapters.release(sequence)
        self.blocks.forget(sequence)
        if sequence.block_table:
            self.use.remove(sequence)
            self.blocks.release(sequence)
        else:  # a stop token came after the sequence was preempted
            self.waiting.remove(sequence)


def token_budget(max_num_batched_tokens: int | None, max_model_len: int | None, steps: Steps, max_num_seqs: int) -> int:
    """New tokens of a step at most; ValueError for none, or where seats that decode in the budget are more."""
    if steps not in get_args(Steps):
        raise ValueError(f"scheduler.steps={steps!r} is not one of {', '.join(get_args(Steps))}")
    source, budget = "", max_num_batched_tokens
    if budget is None:
        source, budget = " (null: the model's context)", sys.maxsize if max_model_len is None else max_model_len
    if budget < 1:
        raise ValueError(f"scheduler.max_num_batched_tokens must be at least 1, not {budget}")
    if steps != "prompts_first" and budget < max_num_seqs:
        raise ValueError(
            f"scheduler.max_num_batched_tokens={budget}{source} is less than one decode token for each of "
            f"scheduler.max_num_seqs={max_num_seqs} seats; raise it, lower max_num_seqs, or take steps=prompts_first"
        )
    return budget
