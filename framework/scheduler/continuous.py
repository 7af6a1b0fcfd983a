"""Continuous batching: sequences join and leave at every step (Orca, OSDI 2022; vLLM, SOSP 2023; Sarathi, OSDI 2024).

When the KV cache runs out, the sequence admitted last loses its blocks; it is recomputed later, or copied back.
"""

from collections import deque
from collections.abc import Callable
from math import inf

from framework.contracts import Order
from framework.core import Batch, Request, Sequence, SlotUse
from framework.scheduler.adapter_ranges import make_slots
from framework.scheduler.adapter_turns import AdapterTurns
from framework.scheduler.batches import make_batch
from framework.scheduler.block_manager import BlockManager
from framework.scheduler.giving_way import giving_way
from framework.scheduler.memory_use import MemoryUse
from framework.scheduler.moving import Moving
from framework.scheduler.orders.fcfs import FirstCome
from framework.scheduler.orders.ranked import Ranked
from framework.scheduler.prefix_cache import Eviction, PrefixCache
from framework.scheduler.quiet_memory import num_steps_with_room, skip_steps
from framework.scheduler.reservation import Promises, Reservation
from framework.scheduler.swap_space import Preemption, SwapSpace
from framework.scheduler.token_budget import Steps, token_budget
from framework.step_runs import Growth


class ContinuousScheduler:
    """First come, first served, or as `order` says; a step costs more with more running sequences, not waiting ones.

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
    preempted because the cache has run out.

    `order` makes the queue of the waiting (see Order), whose first keeps those behind it waiting. It says who is
    preempted, here who was admitted last. Where the first of the waiting takes the place of running sequences, these
    are preempted as a step begins, unless a prompt goes on, and come back in a later one; nobody gives way to it where
    it lacks an adapter's slot. Adapters in turns have an order of their own.

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
        order: Callable[[], Order] = FirstCome,
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
        self.order = order()
        self.waiting: Order | deque[Sequence] | AdapterTurns = self.order
        self.turns: AdapterTurns | None = None
        if adapter_cycle_time is not None and not isinstance(self.order, FirstCome):
            raise ValueError("scheduler.adapter_cycle_time has an order of its own: take order fcfs, or null for it")
        if adapter_cycle_time is not None and num_adapter_slots:
            self.waiting = self.turns = AdapterTurns(self.adapters.max_loras, adapter_cycle_time)
        self.prefetch = prefetch
        self.num_blocks_left = int(watermark * num_blocks)  # free, by an admission
        self.running: list[Sequence] = []  # in the order of their admission
        self.ending: list[Sequence] = []  # their last token is in a step in flight
        self.moving = Moving(self.blocks, self.use, self.adapters)
        self.split: Sequence | None = None  # of the running, if its prompt goes on in the next step
        self.was_of_prompts = False  # the step before
        self.has_preempted = False  # in this step, for memory
        self.displaced: list[Sequence] = []  # in this step, by who waits

    @property
    def num_unfinished(self) -> int:
        return len(self.waiting) + len(self.running) + len(self.ending) + len(self.moving)

    @property
    def num_seated(self) -> int:
        return len(self.running) + len(self.moving.arriving)

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
        if self.turns is not None and self.num_seated < self.max_num_seqs:
            if self.waiting is not self.turns:  # a subclass has put them into an order of its own
                self.turns.refill(self.waiting)
                self.waiting = self.turns
            self.turns.update(self.adapters.num_users, now)
        elif self.waiting is not self.order and not isinstance(self.order, FirstCome):
            raise ValueError(f"{type(self).__name__} orders `waiting` itself: take scheduler.order fcfs")
        self.order.update(now)
        self.wake_time = self.order.wake_time
        self._make_way()
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
        delivered = []
        any_finished = False
        for sequence, token_id in zip(batch.sequences, token_ids, strict=True):
            if token_id is None or sequence.is_finished:
                continue
            delivered.append(sequence)
            if sequence.append(token_id, now):
                any_finished = True
                self._retire(sequence)
        if any_finished:
            self.running = [sequence for sequence in self.running if not sequence.is_finished]
            self.ending = [sequence for sequence in self.ending if not sequence.is_finished]
            if self.moving.leaving:
                self.moving.leaving = [sequence for sequence in self.moving.leaving if not sequence.is_finished]
        self.order.served(delivered)
        return len(delivered)

    def quiet_steps(self, newest: Batch) -> int:
        if self.running != newest.sequences or self.adapters.blocks_per_adapter or not self._is_closed():
            return 0
        num_steps = min([sequence.num_unscheduled_tokens for sequence in self.running])
        return num_steps_with_room(self.running, self.blocks, num_steps)

    def skip(self, oldest: Batch, num_steps: int) -> Growth:
        growth = skip_steps(oldest, num_steps, self.blocks, self.use)
        self.order.served(oldest.sequences, num_steps)
        self._end(self.running)
        return growth

    def _is_closed(self) -> bool:
        """Whether none of the waiting can join before a running sequence ends, as none could in the step before.

        Free blocks only get fewer, but a prefix cache learns more of what the first of the waiting begins with. An
        order may count its updates, or go by their time.
        """
        order = self.order
        if type(order).update not in (Order.update, Ranked.update):
            return False
        if not self.waiting:
            return True
        if self.has_preempted or self.adapters.num_slots or order.preempts or getattr(order, "max_wait", None):
            return False
        if self.num_seated >= self.max_num_seqs:
            return True
        return isinstance(order, FirstCome) and not (self.steps == "alternate" or isinstance(self.blocks, PrefixCache))

    def movable(self) -> list[Sequence]:
        running = self._without_split()
        return [one for one in running if one.output_token_ids and one.num_tokens - one.num_computed_tokens <= 1]

    def release(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.moving.leaving.append(sequence)

    def drop(self, sequence: Sequence) -> None:
        self.moving.drop(sequence)

    def can_accept(self, sequence: Sequence) -> bool:
        if self.waiting or self.num_seated >= self.max_num_seqs or not self.adapters.can_admit(sequence):
            return False
        return self._has_room(sequence, self._num_to_accept(sequence))

    def accept(self, sequence: Sequence) -> list[int]:
        return self.moving.accept(sequence, self._num_to_accept(sequence))

    def _num_to_accept(self, sequence: Sequence) -> int:
        """Blocks for what is computed of a sequence that comes from another scheduler, and for its promise."""
        num_slots = max(sequence.num_computed_tokens, self.promises.num_slots(sequence.request))
        return self.blocks.num_blocks_for(num_slots)

    def cancel(self, sequence: Sequence) -> None:
        self.moving.cancel(sequence)

    def join(self, sequence: Sequence) -> None:
        self.moving.join(sequence)
        self.running.append(sequence)
        self.order.join(sequence)

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
        num_tokens, num_blocks = self._missing(self.waiting[0])
        if self.whole_prompts and num_tokens > budget and not alone:
            return False
        return self._has_room(self.waiting[0], num_blocks)

    def _missing(self, sequence: Sequence) -> tuple[int, int]:
        """How many tokens a waiting sequence has to compute, and how many free blocks it takes with its promise."""
        num_tokens, num_blocks = self.blocks.missing(sequence)
        return num_tokens, num_blocks + self.promises.num_blocks_beyond(sequence, self.blocks)

    def _may_run(self) -> bool:
        """Whether there is a first of the waiting whose turn it is, and a seat and an adapter's slot for it."""
        if not self.waiting or self.has_preempted or self.num_seated >= self.max_num_seqs:
            return False
        first = self.waiting[0]
        if first in self.displaced or not self.order.has_turn(first):
            return False
        return self.adapters.can_admit(first) and (self.turns is None or self.turns.has_turn(first))

    def _has_room(self, sequence: Sequence, num_blocks: int) -> bool:
        """For so many blocks of a sequence that does not run yet, and for its adapter."""
        num_left = self.num_blocks_left if self.num_seated else 0
        return num_blocks + self.adapters.num_missing_blocks(sequence) + num_left <= self.blocks.num_free

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
            if (is_split and self.split is not None) or not self._has_room(sequence, self._missing(sequence)[1]):
                break
            self.running.append(self.waiting.popleft())
            self.adapters.admit(sequence)
            self.swap.bring(sequence, self.blocks)
            self.blocks.grow(sequence, self.promises.num_slots(sequence.request))
            self.use.add(sequence)
            if is_split:
                self.split = sequence
        return len(self.running) > num_before

    def _grow(self, sequence: Sequence) -> None:
        """One block more; preempts the last in the order until one is free, this one too if nobody is behind it."""
        while not self.blocks.num_free and sequence.block_table:
            self._preempt(self.order.last(self.running))
            self.has_preempted = True
        if sequence.block_table:
            sequence.block_table.append(self.blocks.take())
            self.use.extend(sequence)

    def _make_way(self) -> None:
        """Preempt running sequences whose place the first of the waiting take in this step."""
        self.displaced = []
        takes_prompts = self.split is None and not (self.steps == "alternate" and self.was_of_prompts)
        if self.order.preempts and takes_prompts and self.running and self.waiting:
            num_running = len(self.running)
            self.displaced = giving_way(
                self.order,
                self.running,
                self._needs,
                num_seats=self.max_num_seqs - self.num_seated,
                num_blocks=self.blocks.num_free - self.num_blocks_left,
                num_tokens=self.max_num_batched_tokens - (num_running if self.steps == "mixed" else 0),
            )
            for sequence in self.displaced:
                self._preempt(sequence)

    def _needs(self, sequence: Sequence) -> tuple[int, int] | None:
        """Tokens and blocks that a waiting sequence would take; None if there is no slot for its adapter."""
        if not self.adapters.can_admit(sequence):
            return None
        num_tokens, num_blocks = self._missing(sequence)
        return num_tokens, num_blocks + self.adapters.num_missing_blocks(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.use.remove(sequence)
        if not self.swap.put(sequence, self.blocks):
            sequence.num_computed_tokens = 0
        self.blocks.release(sequence)
        self.adapters.release(sequence)
        sequence.num_preemptions += 1
        self.waiting.appendleft(sequence)
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
