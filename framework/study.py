"""A study runs arms × rates × seeds as replays in one process and gathers them in one folder.

Arms are mappings of components (scheduler, engine, model, trace, clock). A component of an arm replaces the study's
own, or, where it is a plain mapping of keywords, changes only these.
"""

import gc
import inspect
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from framework.config import describe, suggest
from framework.console import SweepProgress, make_console
from framework.core import Engine, Request, Trace
from framework.metrics import check_slo, request_table, step_table, summarize
from framework.points import Point, arm_digest, digest_of, locked, point_table, read_point, write_point, write_table
from framework.provenance import environment, resolve_device
from framework.replay import replay
from framework.trace.transforms import drop_longer_than

Arms = dict[str, dict[str, Any]]
COMPONENTS = ("scheduler", "engine", "model", "trace", "clock")


class StudyError(RuntimeError):
    """Some points failed; the others are on disk."""


@dataclass
class Study:
    """Everything that is the same for all points, and the results so far."""

    arms: Arms
    output_dir: Path
    slo: dict[str, float]
    device: torch.device
    environment: dict[str, Any]
    console: Console
    failures: dict[str, list[Point]]  # message → the points that failed with it

    @property
    def arm_digests(self) -> dict[str, str]:
        return {arm: arm_digest(describe(components), self.environment) for arm, components in self.arms.items()}

    def table(self) -> pd.DataFrame:
        """One row per finished point in the folder."""
        return point_table(self.output_dir, self.arm_digests, self.slo)

    def folder(self, point: str) -> Path:
        return self.output_dir / "points" / point

    def raise_failures(self) -> None:
        if not self.failures:
            return
        lines = [f"{message} ({'; '.join(map(str, points))})" for message, points in self.failures.items()]
        raise StudyError("\n".join(lines))


def run_study(
    *,
    arms: Arms,
    defaults: dict[str, Any],
    rates: list[float | None],
    seeds: list[int],
    slo: dict[str, float],
    device: str,
    output_dir: str,
    fresh: bool,
) -> Study:
    """Replay every point that is not on disk yet, writing each as it ends; a point that fails does not stop the others.

    Raises ValueError for arguments out of range and StudyError if not a single point could be computed.
    """
    check_points(arms, rates, seeds)
    check_slo(slo)
    study = open_study(resolve_arms(arms, defaults), slo, device, output_dir)
    points = [
        Point(arm, rate, seed, study.arm_digests[arm]) for arm, rate, seed in point_order(study.arms, rates, seeds)
    ]
    engines = EngineCache(study.device)
    with SweepProgress(study.console, len(points)) as progress, table_saved_at_end(study):
        for point in points:
            compute_or_reuse(study, point, engines, progress, fresh)
    if progress.num_reused:
        study.console.print(
            f"{progress.num_reused} of {len(points)} points reused: same config, code, device (fresh=true redoes them)",
            highlight=False,
        )
    if study.failures and study.table().empty:
        study.raise_failures()
    return study


def open_study(arms: Arms, slo: dict[str, float], device: str, output_dir: str) -> Study:
    resolved = resolve_device(device)
    path = Path(output_dir)
    path.mkdir(parents=True, exist_ok=True)
    return Study(arms, path, slo, resolved, environment(resolved), make_console(), {})


def compute_or_reuse(study: Study, point: Point, engines: "EngineCache", progress: SweepProgress, fresh: bool) -> None:
    folder = study.folder(point.name)
    record = None if fresh else read_point(folder, study.slo)
    reused = record is not None
    if record is None:
        try:
            record = compute_point(study, point, engines, progress)
        except Exception as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            message = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            is_new = message not in study.failures
            study.failures.setdefault(message, []).append(point)
            progress.fail_point(str(point), message if is_new else "for the same reason")
            return
        save_table(study)
    progress.end_point(str(point), record["metrics"], reused)


def save_table(study: Study) -> None:
    with locked(study.output_dir):
        write_table(study.output_dir, study.table())


@contextmanager
def table_saved_at_end(study: Study) -> Iterator[None]:
    """Whatever ends the sweep, `points.csv` has every finished point."""
    try:
        yield
    finally:
        save_table(study)


def compute_point(study: Study, point: Point, engines: "EngineCache", progress: SweepProgress) -> dict[str, Any]:
    arm = study.arms[point.arm]
    progress.say(f"{point}: reading the trace")
    trace = arm["trace"](rate=point.rate, seed=point.seed)
    progress.say(f"{point}: preparing the engine")
    engine = engines.get(arm)
    trace = drop_longer_than(trace, engine.max_model_len)
    if not trace.requests:
        raise ValueError(f"no request of the trace fits the model's context of {engine.max_model_len} tokens")
    engines.warm_up(arm, engine, trace.requests)
    progress.begin_point(str(point), sum(request.num_output_tokens for request in trace.requests))
    on_step = progress.advance if arm["clock"] == "virtual" else None  # drawing takes real time
    sequences, steps = replay(trace.requests, make_scheduler(arm, engine), engine, arm["clock"], on_step)
    requests, step_rows = request_table(sequences), step_table(steps)
    record = {
        "config": describe(arm | {"trace": with_keywords(arm["trace"], rate=point.rate, seed=point.seed)}),
        "environment": study.environment,
        "trace": describe_trace(trace),
        "slo": study.slo,
        "metrics": summarize(requests, step_rows, study.slo),
    }
    write_point(study.folder(point.name), point, requests, step_rows, record)
    report_dropped(study.console, trace)
    return record


def describe_trace(trace: Trace) -> dict[str, Any]:
    span = trace.requests[-1].arrival_time - trace.requests[0].arrival_time
    offered_rate = (len(trace.requests) - 1) / span if span > 0 else math.inf
    return {"num_requests": len(trace.requests), "dropped": trace.dropped, "offered_rate": offered_rate}


def report_dropped(console: Console, trace: Trace) -> None:
    for reason, count in trace.dropped.items():
        console.print(f"  {count} requests dropped: {reason}", highlight=False)


def make_scheduler(arm: dict[str, Any], engine: Engine) -> Any:
    return arm["scheduler"](num_blocks=engine.num_blocks, block_size=engine.block_size)


class EngineCache:
    """Keeps one model and one engine, so that neighbouring arms which share them load them once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.model_key = self.engine_key = ""
        self.model: Any = None
        self.engine: Engine | None = None
        self.warmed: set[str] = set()

    def get(self, arm: dict[str, Any]) -> Engine:
        model_key, engine_key = digest_of(describe(arm["model"])), engine_digest(arm)
        if engine_key != self.engine_key or self.engine is None:
            self.engine, self.engine_key = None, ""
            self.warmed.clear()
            self.free()
            if model_key != self.model_key or self.model is None:
                self.model, self.model_key = None, ""
                self.free()
                self.model, self.model_key = arm["model"](device=self.device), model_key
            self.engine, self.engine_key = arm["engine"](model=self.model), engine_key
        return self.engine

    def warm_up(self, arm: dict[str, Any], engine: Engine, requests: list[Request]) -> None:
        """Before an arm's first point, replay some of its requests at once: full batches, then ever smaller ones."""
        scheduler = make_scheduler(arm, engine)
        key = digest_of(describe(arm["scheduler"]))
        if key in self.warmed:
            return
        replay(warm_up_requests(requests, scheduler.max_num_seqs), scheduler, engine)
        self.warmed.add(key)

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def warm_up_requests(requests: list[Request], max_num_seqs: int) -> list[Request]:
    """One request per seat, ending one step after the other, so that every decode batch size occurs."""
    return [
        replace(request, arrival_time=0.0, num_output_tokens=min(request.num_output_tokens, index + 1))
        for index, request in enumerate(requests[:max_num_seqs])
    ]


def engine_digest(arm: dict[str, Any]) -> str:
    return digest_of(describe([arm["model"], arm["engine"]]))


def resolve_arms(arms: Arms, defaults: dict[str, Any]) -> Arms:
    """Every arm with all its components; raises ValueError for an unknown component or keyword."""
    return {
        arm: defaults | {name: resolve_component(arm, name, value, defaults) for name, value in components.items()}
        for arm, components in arms.items()
    }


def resolve_component(arm: str, name: str, value: Any, defaults: dict[str, Any]) -> Any:
    if name not in COMPONENTS:
        raise ValueError(f"unknown component {name!r} in arms.{arm}{suggest(name, COMPONENTS)}")
    if not isinstance(value, dict):
        return value
    base = defaults[name]
    parameters = inspect.signature(base.func).parameters
    for key in value:
        if key not in parameters:
            raise ValueError(f"unknown key {key!r} in arms.{arm}.{name}{suggest(key, parameters)}")
    return with_keywords(base, **value)


def with_keywords(call: partial[Any], **keywords: Any) -> partial[Any]:
    return partial(call.func, **(call.keywords | keywords))


def point_order(arms: Arms, rates: list[float | None], seeds: list[int]) -> list[tuple[str, float | None, int]]:
    """Arms that share an engine take turns, in changing order, so that a drift of the machine's speed meets all."""
    order: list[tuple[str, float | None, int]] = []
    for _, group in groupby(arms, key=lambda arm: engine_digest(arms[arm])):
        names = list(group)
        for seed in seeds:
            for rate in rates:
                order += [(arm, rate, seed) for arm in names]
                names.reverse()
    return order


def check_points(arms: Arms, rates: list[float | None], seeds: list[int]) -> None:
    for name, values in (("arms", arms), ("rates", rates), ("seeds", seeds)):
        if not values:
            raise ValueError(f"{name} is empty: a study needs at least one")
    for arm in arms:
        if not re.fullmatch(r"[\w.+-]+", arm):
            raise ValueError(f"arm name {arm!r} names a folder: use letters, digits, '_', '.', '+' and '-' only")
    for rate in rates:
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"rates must be positive finite numbers of requests/s (or null: as recorded), not {rate}")
    for seed in seeds:
        if seed < 0:
            raise ValueError(f"seeds must be at least 0, not {seed}")
