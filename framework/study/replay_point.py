"""How a point is replayed: get its engine and its trace, warm the engine up if the arm is new to it, and serve."""

import math
from dataclasses import dataclass
from operator import attrgetter

import pandas as pd

from framework.core import Engine, Trace
from framework.measure.replay_tables import request_table, step_table
from framework.replay import replay
from framework.study.arms import Arm
from framework.study.engine_cache import EngineCache
from framework.study.points import Point
from framework.study.progress import SweepProgress
from framework.study.records import EngineRecord, TraceRecord
from framework.trace.source import TraceSource
from framework.trace.transforms import drop_adapters


@dataclass(frozen=True)
class ReplayedPoint:
    """What a replay leaves."""

    requests: pd.DataFrame
    steps: pd.DataFrame
    engine: EngineRecord
    trace: TraceRecord


def replay_point(point: Point, arm: Arm, engines: EngineCache, progress: SweepProgress) -> ReplayedPoint:
    if engines.engine is None:
        arm.trace(rate=point.rate, seed=point.seed)  # a bad trace fails before a model loads
    progress.say(f"{point}: preparing")
    engine = engines.get(arm)
    trace = arm.trace(rate=point.rate, seed=point.seed, max_model_len=engine.max_model_len)
    trace = drop_adapters(trace, engine.refused_adapters(trace.requests))
    progress.tell_dropped(trace.dropped)
    engines.warm_up(arm, engine, trace.requests)
    progress.begin_point(str(point), sum(request.num_output_tokens for request in trace.requests))
    on_step = progress.advance if arm.clock == "virtual" else None  # drawing takes real time
    servers = engines.get_servers(arm, on_step)
    sequences = replay(TraceSource(trace.requests), servers, arm.router(servers), arm.clock)
    steps = sorted((step for server in servers for step in server.steps), key=attrgetter("start_time"))
    return ReplayedPoint(request_table(sequences), step_table(steps), engine_record(engine), trace_record(trace))


def engine_record(engine: Engine) -> EngineRecord:
    return {
        "num_blocks": engine.num_blocks,
        "block_size": engine.block_size,
        "max_model_len": engine.max_model_len,
        "num_adapter_slots": engine.num_adapter_slots,
        "num_adapter_bytes": engine.num_adapter_bytes,
        "num_cache_bytes": engine.num_cache_bytes,
    }


def trace_record(trace: Trace) -> TraceRecord:
    span = trace.requests[-1].arrival_time - trace.requests[0].arrival_time
    offered_rate = (len(trace.requests) - 1) / span if span > 0 else math.inf
    return {"num_requests": len(trace.requests), "dropped": trace.dropped, "offered_rate": offered_rate}
