"""A study runs arms × rates × seeds as replays in one process and gathers them in one folder."""

import errno
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import pandas as pd
import torch
from rich.console import Console
from typing_extensions import TypedDict

from framework.build import ChangeModel, MakeEngine, MakeModel, MakeTrace, make_scheduler, replay_trace, resolve_device
from framework.config import describe, with_keywords
from framework.core import StudyError, Trace
from framework.measure.metrics import check_slo, summarize
from framework.measure.replay_tables import request_table, step_table
from framework.study.arms import Arms, point_order
from framework.study.engine_cache import EngineCache
from framework.study.files import locked
from framework.study.points import (
    Point,
    arm_digest,
    fingerprint_files,
    point_table,
    read_point,
    write_point,
    write_table,
)
from framework.study.progress import SweepProgress, make_console
from framework.study.provenance import environment, metrics_version
from framework.trace.transforms import drop_adapters

MAX_RATE = 1e6  # requests/s; above it, differences of arrival times drown in rounding
NUM_TOLD = 5  # reasons on the console for which a point's requests are dropped
ENGINE_FACTS = (
    "num_blocks",
    "block_size",
    "max_model_len",
    "num_adapter_slots",
    "num_adapter_bytes",
    "num_cache_bytes",
)


class Setup(TypedDict):
    """What a study takes that runs an engine."""

    model: MakeModel
    engine: MakeEngine
    device: str  # auto, cpu or cuda
    output_dir: str


class Replays(Setup):
    """What every sweep takes: a trace that is replayed at every rate with every seed."""

    trace: MakeTrace
    rates: list[float | None]  # requests/s; None: as recorded
    seeds: list[int]
    slo: dict[str, float]  # metric → seconds
    tracking: NotRequired[Callable[..., None] | None]
    fresh: bool  # redo the points that are on disk


class Sweep(Replays):
    """What a sweep takes whose arms are given, each with what it changes of the study's own parts."""

    arms: Arms
    quantization: ChangeModel
    lora: ChangeModel


@dataclass
class Study:
    """Everything that is the same for all points, and the results so far."""

    arms: Arms
    output_dir: Path
    slo: dict[str, float]
    device: torch.device
    environment: dict[str, Any]
    console: Console
    arm_digests: dict[str, str]
    failures: dict[str, list[Point]]  # message → the points that failed with it

    def table(self) -> pd.DataFrame:
        """One row per finished point in the folder."""
        return point_table(self.output_dir, self.arm_digests, self.slo)

    def folder(self, point: str) -> Path:
        return self.output_dir / "points" / point

    def raise_failures(self) -> None:
        if not self.failures:
            return
        raise StudyError("\n".join(f"{message} ({name_points(points)})" for message, points in self.failures.items()))


def run_study(arms: Arms, sweep: Replays) -> Study:
    """Replay every point that is not on disk yet, writing each as it ends; a point that fails does not stop the others.

    `arms` have all their parts, as resolve_arms makes them. Raises ValueError for arguments out of range and StudyError
    if not a single point could be computed.
    """
    rates, seeds, fresh = sweep["rates"], sweep["seeds"], sweep["fresh"]
    check_points(arms, rates, seeds)
    check_slo(sweep["slo"])
    study = open_study(arms, sweep["slo"], sweep["device"], sweep["output_dir"])
    points = [
        Point(arm, None if rate is None else float(rate), seed, study.arm_digests[arm])
        for arm, rate, seed in point_order(study.arms, rates, seeds)
    ]
    with SweepProgress(study.console, len(points)) as progress, table_saved_at_end(study, fresh):
        engines = EngineCache(study.device, progress.say)
        for point in points:
            compute_or_reuse(study, point, engines, progress, fresh)
    if progress.num_reused:
        study.console.print(
            f"{progress.num_reused} of {len(points)} points reused: same config, code, device (fresh=true redoes them)",
            highlight=False,
        )
    if study.table().empty:
        study.raise_failures()
    return study


def open_study(arms: Arms, slo: dict[str, float], device: str, output_dir: str) -> Study:
    resolved = resolve_device(device)
    path = Path(output_dir)
    path.mkdir(parents=True, exist_ok=True)
    surroundings = environment(resolved)
    digests = {arm: arm_digest(describe(components), surroundings) for arm, components in arms.items()}
    return Study(arms, path, slo, resolved, surroundings, make_console(), digests, {})


def compute_or_reuse(study: Study, point: Point, engines: EngineCache, progress: SweepProgress, fresh: bool) -> None:
    folder = study.folder(point.name)
    record = None if fresh else read_point(folder, study.slo)
    reused = record is not None
    if record is None:
        try:
            record = compute_point(study, point, engines, progress)
        except Exception as error:
            is_disk_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if is_disk_full or os.environ.get("HYDRA_FULL_ERROR"):
                raise  # the other points could not be written either
            message = f"{error}" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
            progress.fail_point(str(point), message if message not in study.failures else None)
            study.failures.setdefault(message, []).append(point)
            return
        save_table(study)
    progress.end_point(str(point), record["metrics"], reused)


def name_points(points: list[Point]) -> str:
    """A single point by its name, several by their number and arms."""
    arms = dict.fromkeys(point.arm for point in points)
    return str(points[0]) if len(points) == 1 else f"{len(points)} points of {', '.join(arms)}"


def save_table(study: Study) -> None:
    with locked(study.output_dir):
        write_table(study.output_dir, study.table())


@contextmanager
def table_saved_at_end(study: Study, fresh: bool) -> Iterator[None]:
    """Whatever ends the sweep, `points.csv` has every finished point; an interruption says how many there are."""
    try:
        yield
    except KeyboardInterrupt:
        num_points = len(study.table())
        if not num_points:
            raise
        command = "the same command, without fresh=true," if fresh else "the same command"
        message = f"finished points are on disk ({num_points}); {command} goes on from there"
        raise KeyboardInterrupt(message) from None
    finally:
        save_table(study)


def compute_point(study: Study, point: Point, engines: EngineCache, progress: SweepProgress) -> dict[str, Any]:
    arm = study.arms[point.arm]
    if engines.engine is None:
        arm["trace"](rate=point.rate, seed=point.seed)  # a bad trace fails before a model loads
    progress.say(f"{point}: preparing")
    engine = engines.get(arm)
    trace = arm["trace"](rate=point.rate, seed=point.seed, max_model_len=engine.max_model_len)
    trace = drop_adapters(trace, engine.refused_adapters(trace.requests))
    report_dropped(study.console, trace)
    engines.warm_up(arm, engine, trace.requests)
    progress.begin_point(str(point), sum(request.num_output_tokens for request in trace.requests))
    on_step = progress.advance if arm["clock"] == "virtual" else None  # drawing takes real time
    scheduler = make_scheduler(arm["scheduler"], engine)
    sequences, steps = replay_trace(trace.requests, scheduler, engine, arm["clock"], on_step)
    requests, step_rows = request_table(sequences), step_table(steps)
    config = describe(arm | {"trace": with_keywords(arm["trace"], rate=point.rate, seed=point.seed)})
    record = {
        "config": config,
        "files": fingerprint_files(config),
        "environment": study.environment,
        "engine": {name: getattr(engine, name) for name in ENGINE_FACTS},
        "trace": describe_trace(trace),
        "slo": study.slo,
        "metrics_version": metrics_version(),
        "metrics": summarize(requests, step_rows, study.slo),
    }
    write_point(study.folder(point.name), point, requests, step_rows, record)
    return record


def describe_trace(trace: Trace) -> dict[str, Any]:
    span = trace.requests[-1].arrival_time - trace.requests[0].arrival_time
    offered_rate = (len(trace.requests) - 1) / span if span > 0 else math.inf
    return {"num_requests": len(trace.requests), "dropped": trace.dropped, "offered_rate": offered_rate}


def report_dropped(console: Console, trace: Trace) -> None:
    """The most frequent reasons; point.json and the page have all."""
    reasons = sorted(trace.dropped.items(), key=lambda item: -item[1])
    for reason, count in reasons[:NUM_TOLD]:
        console.print(f"  {count} requests dropped: {reason}", markup=False, highlight=False, soft_wrap=True)
    if len(reasons) > NUM_TOLD:
        others = sum(count for _, count in reasons[NUM_TOLD:])
        console.print(f"  {others} requests dropped for {len(reasons) - NUM_TOLD} other reasons", highlight=False)


def check_points(arms: Arms, rates: list[float | None], seeds: list[int]) -> None:
    for name, values in (("arms", arms), ("rates", rates), ("seeds", seeds)):
        if not values:
            raise ValueError(f"{name} is empty: a study needs at least one")
    for rate in rates:
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"rates must be positive finite numbers of requests/s (or null: as recorded), not {rate}")
        if rate is not None and rate > MAX_RATE:
            raise ValueError(f"rates must be at most {MAX_RATE:,.0f} requests/s, not {rate:g}")
    for seed in seeds:
        if seed < 0:
            raise ValueError(f"seeds must be at least 0, not {seed}")


def representative_points(study: Study, points: pd.DataFrame, rate: float) -> dict[str, Path]:
    """Per arm, the folder of its first seed at `rate`, where it has that point."""
    at_rate = points[points["rate"] == rate]
    return {str(arm): study.folder(rows["point"].iloc[0]) for arm, rows in at_rate.groupby("arm", sort=False)}


def read_tables(folders: dict[str, Path], file: str, **options: Any) -> dict[str, pd.DataFrame]:
    return {arm: pd.read_parquet(folder / file, **options) for arm, folder in folders.items()}
