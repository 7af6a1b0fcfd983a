"""How a point is replayed: get its engine and its trace, warm the engine up if the arm is new to it, and serve.

The trace knows nothing of the engine, so that every arm is offered the same requests; those that it refuses stay in its
table.
"""

import gc
import inspect
import math
from collections import Counter
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any

import pandas as pd

from framework.build import MakeScheduler, make_scheduler
from framework.config import describe as as_data
from framework.contracts import Engine, Scheduler, Source
from framework.core import Request, Sequence, Trace
from framework.engine.measured import MeasuredEngine
from framework.engine.modelled import ModelledEngine
from framework.engine.recorded import RecordedEngine
from framework.engine.torch_engine.replica import Replica
from framework.measure.gpu_state import GpuRecord, GpuWatch
from framework.measure.replay_tables import table_of_logs
from framework.replay import Mover, Server, replay
from framework.study.arms import Arm
from framework.study.engine_cache import EngineCache
from framework.study.modelled import modelled_record
from framework.study.parquet import read_rows
from framework.study.points import Point
from framework.study.progress import SweepProgress
from framework.study.recorded import follow, recorded_record
from framework.study.records import EngineRecord, PlacementRecord, TraceRecord
from framework.study.request_rows import write_replay
from framework.study.roles import make_movers, with_role
from framework.trace.source import TraceSource
from framework.trace.transforms import starts

AFTER_REFUSED = "follows a turn of its session that is refused"
MAX_TOLD = 5  # reasons in the message of an error


@dataclass(frozen=True)
class ReplayedPoint:
    """What a replay leaves; of its tokens `requests` has the times, and the file that it was written to has all."""

    requests: pd.DataFrame
    steps: pd.DataFrame
    engine: EngineRecord
    trace: TraceRecord
    gpu: GpuRecord | None
    placement: PlacementRecord | None = None  # of servers that had a device each


def replay_point(
    point: Point,
    arm: Arm,
    engines: EngineCache,
    progress: SweepProgress,
    gpu: GpuWatch | None = None,
    file: IO[bytes] | None = None,
) -> ReplayedPoint:
    """Replay it. Requests are written to `file`, as Parquet, while they finish; None: to one that goes away again."""
    with TemporaryFile() if file is None else nullcontext(file) as written:
        rest = replay_into(written, point, arm, engines, progress, gpu)
        gc.collect()  # servers and their world, which refer to each other, and all requests
        return ReplayedPoint(read_rows(written), *rest)


def replay_into(
    file: IO[bytes], point: Point, arm: Arm, engines: EngineCache, progress: SweepProgress, gpu: GpuWatch | None
) -> tuple[pd.DataFrame, EngineRecord, TraceRecord, GpuRecord | None]:
    """What a replay leaves beside its requests, which go to the file."""
    trace = arm.trace(seed=point.seed, **point.load.trace_keywords)  # a bad one fails before a model loads
    progress.say(f"{point}: preparing")
    refused = refusals_of(arm, trace.requests, engines)
    requests = servable(trace, refused, progress)
    engines.warm_up(arm, engines.get(arm), requests)
    progress.begin_point(str(point), sum(request.num_output_tokens for request in requests))
    on_step = progress.advance if arm.clock == "virtual" else None  # drawing takes real time
    servers = engines.get_servers(arm, on_step, point.seed)
    for server in servers:
        if isinstance(server.engine, RecordedEngine):
            follow(server.engine, config_of(point, arm), point.arm, server.index)
    movers, route = movers_of(arm, servers, engines), arm.router(with_role(arm.groups, servers, "prefill", "mixed"))
    source = TraceSource(requests, trace.max_concurrency, compacts=True)

    def serve(source: Source) -> list[Sequence]:
        with nullcontext() if gpu is None else gpu.watching():
            return replay(source, servers, route, arm.clock, movers)

    may_forget = not movers and all(isinstance(server.engine, ModelledEngine) for server in servers)
    offered = write_replay(file, source, serve, trace.requests, refused, may_forget=may_forget)
    return (
        table_of_logs(server.log for server in servers),
        engine_record([server.engine for server in servers], trace.requests),
        trace_record(trace, offered, refused, point.load.rate, uses=fields_in_use(arm)),
        None if gpu is None else gpu.record(),
    )


def movers_of(arm: Arm, servers: list[Server], engines: EngineCache) -> list[Mover]:
    return make_movers(
        arm.groups,
        servers,
        link=None if arm.link is None else arm.link(),
        decode_router=arm.decode_router,
        migrate=arm.migrate,
        num_layers=1 if arm.link is None else engines.num_layers(arm),
    )


def refusals_of(arm: Arm, requests: list[Request], engines: EngineCache) -> dict[int, str]:
    """Which of the requests some server of the arm could never serve; where they are not all alike, which one."""
    refused: dict[int, str] = {}
    for group in arm.groups:
        engine = engines.get_of_server(arm, group)
        reasons = refusals(requests, engine, make_scheduler(group.scheduler, engine))
        if isinstance(engine, Replica):
            check_share(requests, reasons, group.scheduler, arm.num_servers, engine.engine, engine.num_blocks)
        name = "" if isinstance(arm.servers, int) else f"{group.role} servers: "
        refused = {request_id: f"{name}{reason}" for request_id, reason in reasons.items()} | refused
    return refused


def check_share(
    requests: list[Request],
    refused: dict[int, str],
    make: MakeScheduler,
    num_servers: int,
    whole: Engine,
    num_blocks: int,
) -> None:
    """ValueError naming the first request that the whole engine could serve, but no server with its share of it."""
    refused_by_one = refusals(requests, whole, make_scheduler(make, whole))
    for request in requests:
        if request.request_id in refused and request.request_id not in refused_by_one:
            raise ValueError(
                f"servers={num_servers}: each has {num_blocks} of the engine's {whole.num_blocks} KV blocks of "
                f"{whole.block_size} tokens, and request {request.request_id} is refused: {refused[request.request_id]}"
            )


def servable(trace: Trace, refused: dict[int, str], progress: SweepProgress) -> list[Request]:
    """The requests that are left; what is not is told. ValueError if there are none."""
    progress.tell("dropped", trace.dropped)
    progress.tell("refused", counts(refused))
    requests = [request for request in trace.requests if request.request_id not in refused]
    if not requests:
        raise ValueError(f"none of {len(trace.requests)} requests can be served: {describe(counts(refused))}")
    return requests


def refusals(requests: list[Request], engine: Engine, scheduler: Scheduler) -> dict[int, str]:
    """Which of the requests can never be served: request id → the reason, which others may share.

    A turn is judged by its longest prompt, with whole answers before it; a session ends before one that is refused.
    """
    adapters = engine.refused_adapters(requests)
    refused: dict[int, str] = {}
    ended = set()  # sessions
    for request in requests:
        reason = refusal(request, adapters, engine.max_model_len, scheduler)
        if request.think_time is not None and request.session_id in ended:
            reason = AFTER_REFUSED
        if reason is not None:
            refused[request.request_id] = reason
            ended.add(request.session_id)
    return refused


def refusal(request: Request, adapters: dict[str, str], max_model_len: int, scheduler: Scheduler) -> str | None:
    if request.adapter_id in adapters:
        return adapters[request.adapter_id]
    if request.num_prompt_tokens + request.num_output_tokens > max_model_len:
        return f"longer than the model's context of {max_model_len} tokens"
    try:
        scheduler.check(request)
    except ValueError as error:
        return str(error)
    return None


def counts(refused: dict[int, str]) -> dict[str, int]:
    """Reason → requests, the most frequent first."""
    return dict(Counter(refused.values()).most_common())


def describe(reasons: dict[str, int]) -> str:
    """The most frequent reasons, and how many more there are."""
    more = f"; and {len(reasons) - MAX_TOLD} more reasons" if len(reasons) > MAX_TOLD else ""
    return "; ".join(list(reasons)[:MAX_TOLD]) + more


def config_of(point: Point, arm: Arm) -> dict[str, Any]:
    """The arm's, with the rate and the seed of the point."""
    trace = arm.config["trace"] | point.load.trace_keywords | {"seed": point.seed}
    return arm.config | {"trace": trace}


def engine_record(engines: list[Engine], requests: list[Request]) -> EngineRecord:
    """Of the servers' engines, which are equal but for what they have done."""
    engine = engines[0]
    record: EngineRecord = {
        "num_blocks": engine.num_blocks,
        "block_size": engine.block_size,
        "max_model_len": engine.max_model_len,
        "num_adapter_slots": engine.num_adapter_slots,
        "blocks_per_adapter": engine.blocks_per_adapter,
        "num_adapter_bytes": engine.num_adapter_bytes,
        "num_cache_bytes": engine.num_cache_bytes,
        "num_swap_blocks": engine.num_swap_blocks,
        "num_servers": len(engines),
        "num_steps_ahead": engine.num_steps_ahead,
        "refused_adapters": engine.refused_adapters(requests),
        "switches": engine.switches if isinstance(engine, MeasuredEngine) else {},
    }
    modelled = [engine for engine in engines if isinstance(engine, ModelledEngine)]
    if modelled:
        record["modelled"] = modelled_record(modelled)
    repeating = [engine for engine in engines if isinstance(engine, RecordedEngine)]
    if repeating:
        record["recorded"] = recorded_record(repeating)
    return record


def has_prefix_cache(arm: Arm) -> bool:
    return any(as_data(group.scheduler).get("prefix_cache") is not None for group in arm.groups)


def fields_in_use(arm: Arm) -> list[str]:
    """Fields of requests that the arm's schedulers read where they have a prefix cache or an order."""
    fields = ["prefix_ids"] if has_prefix_cache(arm) else []
    for group in arm.groups:
        keywords = inspect.signature(group.scheduler).parameters
        fields += keywords["order"].default().uses if "order" in keywords else []
    return list(dict.fromkeys(fields))


def trace_record(
    trace: Trace,
    offered: list[Sequence],
    refused: dict[int, str],
    rate: float | None,
    *,
    uses: Collection[str] = (),
) -> TraceRecord:
    return {
        "num_requests": len(trace.requests),
        "dropped": trace.dropped,
        "refused": counts(refused),
        "ignored": [*trace.unread, *ignored_fields(trace.requests, uses)],
        "may_share": may_share(trace.requests),
        "offered_rate": mean_rate(arrivals(offered, refused), rate),
        "num_sessions": len(starts(trace)),
        "session_rate": mean_rate([request.arrival_time for request in starts(trace)], rate),
    }


def may_share(requests: list[Request]) -> bool:
    """Whether a prefix cache could find anything: they have text, closed sessions, or prefix ids in common."""
    has_text = any(request.prompt_token_ids is not None or request.think_time is not None for request in requests)
    return has_text or has_shared_prefixes(requests)


def has_shared_prefixes(requests: list[Request]) -> bool:
    prefixes = [prefix_id for request in requests for prefix_id in set(request.prefix_ids)]
    return len(set(prefixes)) < len(prefixes)


def ignored_fields(requests: list[Request], uses: Collection[str] = ()) -> list[str]:
    """Fields of these requests that could make a difference, but that the arm's scheduler has no use for."""
    sessions = [request.session_id for request in requests if request.session_id is not None]
    differs = {
        "priority": len({request.priority for request in requests}) > 1,
        "session_id": len(set(sessions)) < len(sessions) and all(request.think_time is None for request in requests),
        "prefix_ids": has_shared_prefixes(requests),
        "client_id": len({request.client_id for request in requests}) > 1,
        "num_predicted_tokens": any(request.num_predicted_tokens is not None for request in requests),
    }
    return [name for name, does in differs.items() if does and name not in uses]


def arrivals(offered: list[Sequence], refused: dict[int, str]) -> list[float]:
    """When the requests came (s), in order; a refused turn that follows another one never does."""
    return [
        sequence.arrival_time
        for sequence in offered
        if sequence.request.think_time is None or sequence.request.request_id not in refused
    ]


def mean_rate(times: list[float], rate: float | None) -> float:
    """What the arrivals really were (1/s), infinite if all come at once; a single one has the rate asked for."""
    if len(times) == 1 and rate is not None:
        return rate
    span = times[-1] - times[0]
    return (len(times) - 1) / span if span > 0 else math.inf
