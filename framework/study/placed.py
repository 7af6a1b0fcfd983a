"""A point whose servers have a device each: workers build its engine, and a driver serves them in real time.

What a server is, but for its device, is what it would be where several share one: its scheduler has a share of the
engine's KV blocks, adapter slots and room on the host.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import IO, cast

import torch

from framework.build import MakeScheduler, make_scheduler, replay_trace, takes_what_is_free, warm_up_requests
from framework.contracts import Engine, Scheduler
from framework.core import Request
from framework.engine.torch_engine.replica import shares_of
from framework.measure.gpu_state import GpuWatch
from framework.measure.replay_tables import request_table, step_table
from framework.measure.serving import max_num_seqs_of
from framework.placement.driver import Served, begin
from framework.placement.ray_workers import start_actors, start_ray
from framework.placement.worker import Worker
from framework.placement.workers import Workers, check_gpus, spawn_workers
from framework.study.arms import Arm
from framework.study.engine_cache import EngineCache
from framework.study.parquet import write_whole
from framework.study.points import Point
from framework.study.progress import SweepProgress
from framework.study.records import EngineRecord, PlacementRecord
from framework.study.replay_point import (
    ReplayedPoint,
    check_share,
    engine_record,
    fields_in_use,
    refusals,
    replay_point,
    servable,
    trace_record,
)
from framework.study.request_rows import with_refused
from framework.trace.source import TraceSource


def replay_where_placed(
    point: Point,
    arm: Arm,
    engines: EngineCache,
    progress: SweepProgress,
    gpu: GpuWatch | None = None,
    file: IO[bytes] | None = None,
) -> ReplayedPoint:
    """On the study's device, or on those of the arm's servers. A `file` gets the requests, as Parquet."""
    if not arm.has_own_devices:
        return replay_point(point, arm, engines, progress, gpu, file)
    trace = arm.trace(seed=point.seed, **point.load.trace_keywords)
    progress.say(f"{point}: preparing")
    workers = workers_for(arm, engines)
    scheduler_of = partial(make_share_scheduler, make=arm.scheduler, num_servers=arm.num_servers)
    try:
        refused = workers.ask(0, refused_there, trace.requests, arm)
        requests = servable(trace, refused, progress)
        if arm.warm_up_key not in workers.warmed:
            workers.ask_all(warm_up_there, requests, scheduler_of)
            workers.warmed.add(arm.warm_up_key)
        record = workers.ask(0, record_there, trace.requests, arm.num_servers)
        progress.begin_point(str(point), sum(request.num_output_tokens for request in requests))
        source, seats = TraceSource(requests, trace.max_concurrency), max_num_seqs_of(arm.scheduler)
        with nullcontext() if gpu is None else gpu.watching():
            served = begin(source, workers, scheduler_of, arm.router, seats, arm.view_delay).serve()
    except BaseException:
        drop(engines)  # one may be dead, or serve on
        raise
    if served.died:
        drop(engines)
    offered = with_refused(served.sequences, trace.requests, refused)
    table = request_table(offered, refused)
    if file is not None:
        write_whole(file, table)
    return ReplayedPoint(
        table,
        step_table(served.steps),
        record,
        trace_record(trace, offered, refused, point.load.rate, uses=fields_in_use(arm)),
        None if gpu is None else gpu.record(),
        placement_record(arm, served),
    )


def placement_record(arm: Arm, served: Served) -> PlacementRecord:
    return {
        "placement": arm.placement,
        "clock_offsets": [offset.seconds for offset in served.offsets],
        "clock_round_trips": [offset.round_trip for offset in served.offsets],
        "died": served.died,
        "num_rerouted": served.num_rerouted,
    }


def check_placements(arms: Iterable[Arm], device: torch.device, asked: str) -> None:
    """ValueError for more servers than there are GPUs for them, and for Ray where it is not installed.

    `device` is what `asked`, the study's key, has come to; on a CPU they are placed only where it says so.
    """
    for arm in arms:
        if arm.placement == "gpus" and (device.type == "cuda" or asked != "cpu"):
            check_gpus(arm.num_servers, torch.cuda.device_count(), "this machine")
        elif arm.placement == "ray":
            start_ray(arm.num_servers, "cpu" if asked == "cpu" else "cuda")


def workers_for(arm: Arm, engines: EngineCache) -> Workers:
    """The arm's, started now unless it had them for its last point; those of other arms end."""
    key = f"{arm.engine_key} {arm.num_servers} {arm.placement}"
    if key not in engines.workers:
        drop(engines)
        if takes_what_is_free(arm.engine):
            engines.drop_all_but("")  # on a GPU that a worker has too
        engines.on_progress(f"starting {arm.num_servers} workers")
        others = [other for other in engines.arms if other.engine_key == arm.engine_key]
        make_engine = partial(build_there, arm, others, engines.device.type)
        start = start_actors if arm.placement == "ray" else spawn_workers
        engines.workers[key] = start(make_engine, arm.num_servers, engines.device.type)
    return engines.workers[key]


def drop(engines: EngineCache) -> None:
    for workers in engines.workers.values():
        workers.close()
    engines.workers.clear()


def build_there(arm: Arm, arms: list[Arm], device: str) -> Engine:
    """In a worker's process: the engine that the arm has on such a device, the only one that the process sees."""
    return EngineCache(torch.device(device), lambda line: None, arms).get(arm)


def refused_there(worker: Worker, requests: list[Request], arm: Arm) -> dict[int, str]:
    """As `refusals`, by a server's share; ValueError for a request that only the whole engine could serve."""
    scheduler = make_share_scheduler(worker.engine, make=arm.scheduler, num_servers=arm.num_servers)
    refused = refusals(requests, worker.engine, scheduler)
    num_blocks = share_of(worker.engine, arm.num_servers).num_blocks
    check_share(requests, refused, arm.scheduler, arm.num_servers, worker.engine, num_blocks)
    return refused


def warm_up_there(worker: Worker, requests: list[Request], scheduler_of: "partial[Scheduler]") -> None:
    scheduler = scheduler_of(worker.engine)
    replay_trace(warm_up_requests(requests, scheduler.max_num_seqs), scheduler, worker.engine)


def record_there(worker: Worker, requests: list[Request], num_servers: int) -> EngineRecord:
    """Of each server, with its share of the engine."""
    share = share_of(worker.engine, num_servers)
    record = engine_record([worker.engine] * num_servers, requests)
    record["num_blocks"], record["num_adapter_slots"] = share.num_blocks, share.num_adapter_slots
    record["num_swap_blocks"] = share.num_swap_blocks
    record["num_cache_bytes"] = worker.engine.num_cache_bytes * share.num_blocks // worker.engine.num_blocks
    record["num_adapter_bytes"] //= num_servers
    return record


@dataclass(frozen=True)
class EngineShare:
    """What a scheduler is made for: the fields of an engine."""

    num_blocks: int
    block_size: int
    num_adapter_slots: int
    blocks_per_adapter: int
    max_model_len: int
    num_swap_blocks: int


def share_of(engine: Engine, num_servers: int) -> EngineShare:
    """What one of so many servers would have of an engine that they share; ValueError where that would be nothing."""
    share = shares_of(engine, num_servers)[0]
    return EngineShare(
        num_blocks=share.num_blocks,
        block_size=engine.block_size,
        num_adapter_slots=share.num_slots,
        blocks_per_adapter=engine.blocks_per_adapter,
        max_model_len=engine.max_model_len,
        num_swap_blocks=share.num_host_blocks,
    )


def make_share_scheduler(engine: Engine, *, make: MakeScheduler, num_servers: int) -> Scheduler:
    """The scheduler of one of so many servers, for an engine of its own."""
    return make_scheduler(make, cast(Engine, share_of(engine, num_servers)))
