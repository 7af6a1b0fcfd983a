"""Random replays on a modelled engine, and their event logs: what a rewrite of the loop or a scheduler must repeat."""

import hashlib
import random
from dataclasses import dataclass
from typing import Any

from framework.contracts import Scheduler
from framework.core import Batch, Request, Sequence, Step, StepResult
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from tests.fake_engine import FakeEngine

NUM_CASES = 1000


@dataclass(frozen=True)
class Case:
    """A trace, a scheduler and an engine that measures nothing."""

    requests: list[Request]
    scheduler: Scheduler
    engine: FakeEngine


class AdapterEngine(FakeEngine):
    """A step waits `0.02` s for each adapter that it brings for its own sequences."""

    def launch(self, batch: Batch) -> None:
        super().launch(batch)
        used = {sequence.adapter_slot for sequence in batch.sequences}
        waits = {slot: 0.02 for slot in sorted(batch.adapter_loads) if slot in used}
        result = self.in_flight[-1]
        elapsed = result.elapsed + sum(waits.values())
        self.in_flight[-1] = StepResult(result.token_ids, elapsed, 0.001, elapsed - 0.001, waits)


def step_time(batch: Batch) -> float:
    return 0.01 + 0.0003 * sum(batch.num_tokens) + 1e-6 * sum(batch.starts)


def make_case(seed: int) -> Case:
    """The same seed gives the same case: static or continuous, few or many blocks, adapters, a step ahead or none."""
    rng = random.Random(seed)
    is_static = rng.random() < 0.3
    block_size, num_slots = rng.choice([1, 4, 16]), rng.choice([0, 0, 1, 2, 4])
    longest = rng.choice([8, 40, 120])
    requests = make_requests(rng, longest, num_adapters=rng.choice([1, 3, 8]) if num_slots else 0)
    blocks_needed = max(-(-(one.num_prompt_tokens + one.num_output_tokens) // block_size) for one in requests)
    if is_static:
        longest_pair = max(one.num_prompt_tokens for one in requests) + max(one.num_output_tokens for one in requests)
        blocks_needed = -(-longest_pair // block_size)
    num_blocks = blocks_needed + rng.choice([0, 1, 5, 50, 500])
    engine = AdapterEngine(step_time, num_blocks, block_size, num_steps_ahead=rng.choice([0, 1]))
    engine.num_adapter_slots = num_slots
    keywords: dict[str, Any] = {"max_num_seqs": rng.choice([1, 2, 4, 8, 32]), "num_adapter_slots": num_slots}
    if is_static:
        scheduler: Scheduler = StaticScheduler(
            num_blocks, block_size, max_wait=rng.choice([0.0, 0.05, 0.5]), **keywords
        )
    else:
        scheduler = ContinuousScheduler(
            num_blocks,
            block_size,
            max_num_batched_tokens=rng.choice([3, 16, 64, 2048]),
            watermark=rng.choice([0.0, 0.01, 0.2]),
            max_loras=rng.choice([None, 1, 2]) if num_slots > 1 else None,
            prefetch=rng.random() < 0.5,
            adapter_cycle_time=rng.choice([None, None, 0.1]) if num_slots else None,
            **keywords,
        )
    return Case(requests, scheduler, engine)


def make_requests(rng: random.Random, longest: int, num_adapters: int) -> list[Request]:
    """Arrivals one by one, in groups and after silences; some outputs end early at a stop token."""
    now = 0.0
    requests = []
    for index in range(rng.randint(1, 40)):
        now += rng.choice([0.0, 0.0, rng.expovariate(20), rng.expovariate(20), rng.expovariate(2)])
        adapter = rng.randrange(num_adapters + 1) if num_adapters else 0
        requests.append(
            Request(
                index,
                now,
                rng.randint(1, longest),
                rng.randint(1, longest),
                adapter_id=f"adapter-{adapter}" if adapter else None,
                stop_token_ids=frozenset({rng.randrange(longest)}) if rng.random() < 0.2 else frozenset(),
            )
        )
    return requests


def event_log(case: Case, sequences: list[Sequence], steps: list[Step]) -> list[str]:
    """One line per step, with the requests in it, and one per request, with every time in full precision."""
    lines = [
        f"{step.start_time!r} {step.elapsed!r} {phase} {ids} {step.num_prefill_tokens} {step.num_decode_tokens} "
        f"{step.num_used_blocks} {step.num_waiting} {step.num_output_tokens} {step.num_adapter_loads} "
        f"{step.adapter_wait!r} {step.prepare!r} {step.device!r} {step.num_seqs}"
        for step, (phase, ids) in zip(steps, case.engine.batches, strict=True)
    ]
    lines += [
        f"{one.request.request_id} {one.scheduled_time!r} {one.token_times!r} {one.output_token_ids} "
        f"{one.num_preemptions} {one.num_padding} {one.adapter_load_wait!r}"
        for one in sequences
    ]
    return lines


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
