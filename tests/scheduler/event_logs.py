"""Replays by a fake engine as event logs: (start in s, phase, request ids) of every step, or what each computes."""

from collections import deque

from framework.build import replay_trace
from framework.core import Batch
from tests.fake_engine import FakeEngine


def step_time(batch: Batch) -> float:
    return 1.0 if batch.phase == "prefill" else 0.125


def run(requests, scheduler_type, num_blocks=1000, **options):
    engine = FakeEngine(step_time, num_blocks=num_blocks)
    scheduler = scheduler_type(engine.num_blocks, engine.block_size, **options)
    sequences, steps = replay_trace(requests, scheduler, engine)
    assert scheduler.blocks.num_used == 0
    log = [(step.start_time, phase, ids) for step, (phase, ids) in zip(steps, engine.batches, strict=True)]
    return sequences, steps, log


class RowsEngine(FakeEngine):
    """Keeps of every step which requests decode, and of which prompts it computes which slots: (id, first, end)."""

    def __init__(self, **options):
        super().__init__(lambda batch: 1.0 if batch.num_prefill_tokens else 0.125, **options)
        self.rows = []

    def launch(self, batch):
        super().launch(batch)
        ids = [sequence.request.request_id for sequence in batch.sequences]
        ends = [start + num for start, num in zip(batch.starts, batch.num_tokens, strict=True)]
        slots = list(zip(ids, batch.starts, ends, strict=True))
        self.rows.append((ids[: batch.num_decode_tokens], slots[batch.num_decode_tokens :]))


def run_rows(requests, make, num_steps_ahead=0, num_blocks=1000):
    """(start in s, ids that decode, (id, first slot, end) of each prompt) of every step; with a prompt it takes 1 s."""
    engine = RowsEngine(num_blocks=num_blocks, num_steps_ahead=num_steps_ahead)
    scheduler = make(engine.num_blocks, engine.block_size)
    sequences, steps = replay_trace(requests, scheduler, engine)
    assert scheduler.blocks.num_used == scheduler.num_unfinished == 0
    return sequences, [(step.start_time, *rows) for step, rows in zip(steps, engine.rows, strict=True)]


class OnlyTheFirst(deque):
    """Waiting sequences of which only the first is ever looked at."""

    def __iter__(self):
        raise AssertionError("a schedule goes through all that wait")
