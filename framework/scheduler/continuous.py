"""Continuous batching: sequences join and leave at every step (Orca, OSDI 2022; vLLM, SOSP 2023; Sarathi, OSDI 2024).

When the KV cache runs out, the sequence admitted last loses its blocks; it is recomputed later, or copied back.
"""

from collections import deque
from math import inf

from framework.core import Batch, Growth, Request, Sequence, SlotUse
from framework.scheduler.adapter_ranges import make_slots
from framework.scheduler.adapter_turns import AdapterTurns
from framework.scheduler.batches import make_batch
from framework.scheduler.block_manager import BlockManager
from framework.scheduler.memory_use import MemoryUse
from framework.scheduler.prefix_cache import Eviction, PrefixCache
from framework.scheduler.quiet_memory import num_steps_with_room, skip_steps
from framework.scheduler.reservation import Promises, Reservation
from framework.scheduler.swap_space import Preemption, SwapSpace
from framework.scheduler.token_budget import Steps, token_budget


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

    `reservation` says for how many tokens an admission takes blocks (see Promises). Only with `paged` are sequences
    preempted.

    Who is preempted waits before all others. With `preemption` "recompute" its tokens are computed again. With "swap"
    its blocks are copied to some of the host's `num_swap_blocks`; where too few are free, it is recomputed. It comes
    back beside a step and runs from the next one on, or at once if nothing else runs.

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
        preemption: Preemption = "recompute",
        num_swap_blocks: int = 0,
        num_adapter_slots: int = 0,
        blocks_per_adapter: int = 0,
        max_model_len: int | None = None,
    ) -> None:
        if max_num_seqs < 1:
            raise ValueError(f"max_num_seqs must be at least 1, not {max_num_seqs}")
        if not 0 <= watermark < 1:
            raise ValueError(f"watermark must be in [0, 1), not {watermark}")
        self.promises = Promises(reservation, max_model_len)
        self.swap = SwapSpace(preemption, num_swap_blocks)
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = token_budget(max_num_batched_tokens, max_model_len, steps, max_num_seqs)
        self.steps, self.whole_prompts = steps, whole_prompts
        self.blocks = BlockManager(num_blocks, block_size)
        if prefix_cache is not None:
            self.blocks = PrefixCache(num_blocks, block_size, prefix_cache, has_adapters=num_adapter_slots > 0)
        self.use = MemoryUse(block_size)
        self.adapters = make_slots(num_adapter_slots, max_loras, self.blocks, blocks_per_adapter)
        self.waiting: deque[Sequence] | AdapterTurns = deque()
        self.turns: AdapterTurns | None = None
        if adapter_cycle_time is not None and num_adapter_slots:
            self.waiting = self.turns = AdapterTurns(self.adapters.max_loras, adapter_cycle_time)
        self.prefetch = prefetch
        self.num_blocks_left = int(watermark * num_blocks)  # free, by an admission
        self.running: list[Sequence] = []  # in the order of their admission
        self.ending: list[Sequence] = []  # their last token is in a step in flight
        self.split: Sequence | None = None  # of the running, if its prompt goes on in the next step
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
        self.promises.check(request, self.blocks, num_adapter_blocks)
        self.swap.check(request, self.blocks)

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
        if self._bring_back() and batch is None:
            batch = self._next_batch(now)
        if batch is not None and self.swap.num_blocks:
            batch.swap_out, batch.swap_in = self.swap.take_copies()
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

    def quiet_steps(self, newest: Batch) -> int:
        if self.running != newest.sequences or self.adapters.blocks_per_adapter or not self._is_closed():
            return 0
        num_steps = min([sequence.num_unscheduled_tokens for sequence in self.running])
        return num_steps_with_room(self.running, self.blocks, num_steps)

    def skip(self, oldest: Batch, num_steps: int) -> Growth:
        growth = skip_steps(oldest, num_steps, self.blocks, self.use)
        self._end(self.running)
        return growth

    def _is_closed(self) -> bool:
        """Whether none of the waiting can join before a running sequence ends, as none could in the step before.

        Free blocks only get fewer, but a prefix cache learns more of what the first of the waiting begins with.
        """
        if not self.waiting:
            return True
        if self.has_preempted or self.adapters.num_slots:
            return False
        is_full = len(self.running) >= self.max_num_seqs
        return is_full or not (self.steps == "alternate" or isinstance(self.blocks, PrefixCache))

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
        decoding = self._without_split()
        for sequence in decoding:
            if sequence.num_computed_tokens == len(sequence.block_table) * block_size:
                self._grow(sequence)
        return self._without_split() if self.has_preempted else decoding

    def _without_split(self) -> list[Sequence]:
        if self.split is None:
            return self.running.copy()
        return [sequence for sequence in self.running if sequence is not self.split]

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
        """The step of these, if there are any."""
        if not decoding and not prompts:
            return None
        batch = make_batch(decoding, prompts)
        self.use.num_computed += batch.num_prefill_tokens + batch.num_decode_tokens
        self._end(batch.sequences)
        return batch

    def _end(self, scheduled: list[Sequence]) -> None:
        """Whoever of these sequences samples its last token in the step that was chosen is running no longer."""
        ending = [sequence for sequence in scheduled if not sequence.num_unscheduled_tokens]
        if ending:
            self.ending += ending
            self.running = [sequence for sequence in self.running if sequence.num_unscheduled_tokens]

    def _can_admit(self, budget: int, alone: bool) -> bool:
        if not budget or not self._may_run() or self.waiting[0] in self.swap:
            return False  # who is on the host comes back beside a step
        first = self.waiting[0]
        num_tokens, num_blocks = self.blocks.missing(first)
        num_blocks += self.promises.num_blocks_beyond(first, self.blocks)
        if self.whole_prompts and num_tokens > budget and not alone:
            return False
        return self._has_room(num_blocks)

    def _may_run(self) -> bool:
        """Whether there is a first of the waiting, and a seat and an adapter's slot for it."""
        if not self.waiting or self.has_preempted or len(self.running) >= self.max_num_seqs:
            return False
        first = self.waiting[0]
        return self.adapters.can_admit(first) and (self.turns is None or self.turns.has_turn(first))

    def _has_room(self, num_blocks: int) -> bool:
        """For so many blocks of the first of the waiting, and for its adapter."""
        num_left = self.num_blocks_left if self.running else 0
        return num_blocks + self.adapters.num_missing_blocks(self.waiting[0]) + num_left <= self.blocks.num_free

    def _admit(self, now: float) -> Sequence:
        """Take the first of the waiting into the running, with blocks for all its tokens and what it is promised."""
        sequence = self.waiting.popleft()
        self.adapters.admit(sequence)
        self.blocks.admit(sequence)
        self.blocks.grow(sequence, self.promises.num_slots(sequence.request))
        self.use.add(sequence)
        self.running.append(sequence)
        if sequence.scheduled_time is None:
            sequence.scheduled_time = now
            sequence.num_cached_tokens = sequence.num_computed_tokens
        return sequence

    def _bring_back(self) -> bool:
        """Take the first of the waiting, as far as they are on the host, into the running; whether there are any.

        Its blocks come back beside the step that is chosen already, and it joins the next one.
        """
        num_before = len(self.running)
        while self._may_run() and self.waiting[0] in self.swap:
            sequence = self.waiting[0]
            is_split = not sequence.output_token_ids or sequence.num_tokens - sequence.num_computed_tokens > 1
            if (is_split and self.split is not None) or not self._has_room(self.blocks.missing(sequence)[1]):
                break
            self.running.append(self.waiting.popleft())
            self.adapters.admit(sequence)
            self.swap.bring(sequence, self.blocks)
            self.use.add(sequence)
            if is_split:
                self.split = sequence
        return len(self.running) > num_before

    def _grow(self, sequence: Sequence) -> None:
        """One block more; preempts those admitted last until one is free, this one too if nobody came after it."""
        while not self.blocks.num_free and sequence.block_table:
            self._preempt()
        if sequence.block_table:
            sequence.block_table.append(self.blocks.take())
            self.use.extend(sequence)

    def _preempt(self) -> None:
        sequence = self.running.pop()
        self.use.remove(sequence)
        if not self.swap.put(sequence, self.blocks):
            sequence.num_computed_tokens = 0
        self.blocks.release(sequence)
        self.adapters.release(sequence)
        sequence.num_preemptions += 1
        self.waiting.appendleft(sequence)
        self.has_preempted = True
        if sequence is self.split:
            self.split = None

    def _retire(self, sequence: Sequence) -> None:
        self.adapters.release(sequence)
        self.blocks.forget(sequence)
        if sequence.block_table:
            self.use.remove(sequence)
            self.blocks.release(sequence)
        else:  # a stop token came after the sequence was preempted
            self.waiting.remove(sequence)
            if sequence in self.swap:
                self.swap.drop(sequence)
