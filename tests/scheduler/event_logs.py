"""Replays by a fake engine as event logs: (start in s, phase, request ids) of every step."""

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
