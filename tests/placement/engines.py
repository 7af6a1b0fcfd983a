"""Fake engines and servers for workers, which import this file in processes of their own."""

import os
import time
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread

from framework.contracts import Engine, Scheduler
from framework.core import Request
from framework.placement.driver import Driver, begin
from framework.placement.worker import MakeEngine, work
from framework.placement.workers import Workers, spawn_workers
from framework.router.round_robin import round_robin
from framework.scheduler.continuous import ContinuousScheduler
from framework.trace.source import TraceSource
from tests.fake_engine import FakeEngine

STEP_TIME = 0.01
NUM_SEATS = 8


class Sleeper(FakeEngine):
    """Every step takes real time. The first process that meets request `dies_with` makes the file `died` and dies."""

    def __init__(self, dies_with: int | None = None, died: Path = Path()) -> None:
        super().__init__()
        self.dies_with, self.died = dies_with, died

    def launch(self, batch):
        super().launch(batch)
        has_it = any(one.request.request_id == self.dies_with and one.output_token_ids for one in batch.sequences)
        if has_it and not self.died.exists():
            self.died.touch()
            os._exit(9)

    def collect(self):
        time.sleep(STEP_TIME)
        return super().collect()


class Failing(FakeEngine):
    def collect(self):
        raise ValueError("step 1: the logits are NaN")


class Deaf(ContinuousScheduler):
    """Never schedules."""

    def schedule(self, now):
        return None


def continuous(engine: Engine) -> Scheduler:
    return ContinuousScheduler(engine.num_blocks, engine.block_size, max_num_seqs=NUM_SEATS)


def deaf(engine: Engine) -> Scheduler:
    return Deaf(engine.num_blocks, engine.block_size)


def not_buildable() -> Engine:
    raise ValueError("model.path is no model")


def spawned(make_engine: MakeEngine = Sleeper, num_servers: int = 2) -> Workers:
    return spawn_workers(make_engine, num_servers, "cpu")


def in_threads(make_engine: MakeEngine = Sleeper, num_servers: int = 2) -> Workers:
    """Workers in this process, for what needs none of its own: they are there at once."""
    pipes = [Pipe() for _ in range(num_servers)]
    for index, (_, there) in enumerate(pipes):
        Thread(target=work, args=(there, make_engine, index), daemon=True).start()
    return Workers([here for here, _ in pipes], "cpu")


def driver_of(
    requests: list[Request], workers: Workers, make_router=round_robin, make_scheduler=continuous, **options
) -> Driver:
    return begin(TraceSource(requests, **options), workers, make_scheduler, make_router, NUM_SEATS)
