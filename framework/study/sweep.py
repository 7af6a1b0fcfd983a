"""A study runs arms × rates × seeds as replays in one process and gathers them in one folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pandas as pd

from framework.checks import message
from framework.errors import StudyError, describe_error
from framework.measure.capacity import Search
from framework.measure.gpu_state import GpuWatch, open_gpu
from framework.measure.metrics import summarize
from framework.measure.slo import goals_of
from framework.paths import check_writable
from framework.study.arguments import Replays, Tracker, Traffic, check_points, check_search, check_traces, check_users
from framework.study.arms import Arm, point_order
from framework.study.auto_rates import NUM_RATES, Rates, find_rates
from framework.study.capacity import ArmCapacity, ArmSearch, ShortReplayError, search_arm, search_of
from framework.study.engine_cache import EngineCache
from framework.study.files import DISK_FULL
from framework.study.load import Load
from framework.study.modelled import environment_of
from framework.study.parquet import telling_size
from framework.study.place import Place, open_place
from framework.study.placed import check_placements, replay_where_placed
from framework.study.points import (
    Point,
    arm_digest,
    fingerprint_files,
    point_table,
    read_metrics,
    settled,
    write_point,
    write_table,
)
from framework.study.progress import SweepProgress
from framework.study.provenance import Environment, metrics_version
from framework.study.replay_point import ReplayedPoint, config_of


@dataclass
class Study(Place):
    """Everything that is the same for all points of a sweep, and the results so far."""

    arms: dict[str, Arm]
    slo: dict[str, float]
    tracking: Tracker | None
    arm_digests: dict[str, str]
    environments: dict[str, Environment]  # of each arm
    failures: dict[str, list[Point]]  # message → the points that failed with it; none where it was no point's
    price_per_gpu_hour: float | None = None
    capacities: dict[str, ArmCapacity] = field(default_factory=dict)  # of the arms that were searched
    is_closed_loop: bool = False  # its points are of users; those of rates in its folder are another study's

    @contextmanager
    def points(self) -> Iterator[pd.DataFrame]:
        """One row per finished point in the folder; until the block ends, no other job changes what is in there."""
        with settled(self.output_dir):
            yield point_table(self.output_dir, self.arm_digests, self.slo, self.is_closed_loop)

    def table(self) -> pd.DataFrame:
        """One row per finished point in the folder."""
        with self.points() as points:
            return points

    def folder(self, point: str) -> Path:
        return self.output_dir / "points" / point

    def raise_failures(self) -> None:
        if not self.failures:
            return
        told = [problem + f" ({name_points(points)})" * bool(points) for problem, points in self.failures.items()]
        raise StudyError("\n".join(told))


def run_study(arms: dict[str, Arm], sweep: Replays, engines: EngineCache | None = None) -> Study:
    """Replay every point that is not on disk yet, writing each as it ends; a point that fails does not stop the others.

    `arms` have all their parts, as resolve_arms makes them; `engines` has those that are built already. Raises
    ValueError for arguments out of range and StudyError if not a single point could be computed.
    """
    rates, users, seeds, fresh = sweep["rates"], sweep.get("users"), sweep["seeds"], sweep["fresh"]
    check_points(arms, rates if users is None else [None], seeds)
    check_users(arms, users)
    search = search_of(sweep.get("capacity", False), seeds[0])
    check_search(sweep["slo"], search, users)
    study = open_study(arms, sweep)
    if study.table().empty:
        check_traces(arms, rates, users, seeds[0])
    num_loads = len(users) if users is not None else num_rates(rates)
    with SweepProgress(study.console, len(arms) * num_loads * len(seeds)) as progress, table_saved_at_end(study, fresh):
        engines = engines or EngineCache(study.device, progress.say, study.arms.values())
        engines.on_progress = progress.say
        gpu = open_gpu(study.device, study.say)
        if users is None and not isinstance(rates, list):
            multiples = None if rates == "auto" else rates
            rates = [*find_rates(study.output_dir, arms, study.arm_digests, seeds[0], engines, progress, multiples)]
            progress.num_points = len(arms) * len(rates) * len(seeds)
        for arm, load, seed in point_order(arms, loads_of(rates, users), seeds):
            point = Point(arm, load, seed, study.arm_digests[arm])
            compute_or_reuse(study, point, engines, progress, gpu, fresh)
        if search is not None:
            search_capacities(probing(study), search, engines, progress, gpu, fresh)
    if progress.num_reused:
        study.say(
            f"{progress.num_reused} of {progress.num_points} points reused: same config, code, device "
            "(fresh=true redoes them)"
        )
    if save_table(study).empty:
        study.raise_failures()
    return study


def num_rates(rates: Rates) -> int:
    """How many there are to be at most."""
    if rates == "auto":
        return NUM_RATES
    return len(rates["multiples"] if isinstance(rates, dict) else rates)


def run_search(arms: dict[str, Arm], traffic: Traffic, search: Search) -> Study:
    """Search for the capacity of every arm, whose probes are the study's points."""
    check_search(traffic["slo"], search, None)
    study = open_study(arms, traffic)
    fresh, num_points = traffic["fresh"], len(arms) * search.max_probes * search.num_seeds
    with SweepProgress(study.console, num_points) as progress, table_saved_at_end(study, fresh):
        engines = EngineCache(study.device, progress.say, study.arms.values())
        search_capacities(study, search, engines, progress, open_gpu(study.device, study.say), fresh)
    if save_table(study).empty:
        study.raise_failures()
    return study


def probing(study: Study) -> Study:
    """The same study in a folder of its own, where the points of a search do not mix with those of the rates."""
    return replace(study, output_dir=study.output_dir / "capacity")


def search_capacities(
    study: Study, search: Search, engines: EngineCache, progress: SweepProgress, gpu: GpuWatch | None, fresh: bool
) -> None:
    """Of one arm after the other; one that fails does not stop the others."""
    goals = goals_of(study.slo)
    study.output_dir.mkdir(parents=True, exist_ok=True)

    def compute(point: Point) -> Path:
        num_failed = sum(map(len, study.failures.values()))
        compute_or_reuse(study, point, engines, progress, gpu, fresh)
        if sum(map(len, study.failures.values())) > num_failed:
            raise ProbeError
        return study.folder(point.name)

    for name, arm in study.arms.items():
        device = study.environments[name]["device"]
        wanted = ArmSearch(name, arm, study.arm_digests[name], device, goals, search, study.output_dir)
        try:
            found = search_arm(wanted, compute, engines, progress)
        except ProbeError:
            continue  # the page has why
        except ShortReplayError as error:
            study.failures.setdefault(f"{name}: {error}", [])
            continue
        study.capacities[name] = found
    save_table(study)


class ProbeError(Exception):
    """A point of a search failed, and the study has why."""


def loads_of(rates: Rates, users: list[int] | None) -> list[Load]:
    if users is not None:
        return [Load(users=number) for number in users]
    assert isinstance(rates, list)
    return [Load(None if rate is None else float(rate)) for rate in rates]


def open_study(arms: dict[str, Arm], sweep: Traffic) -> Study:
    is_executed = not all(arm.is_modelled for arm in arms.values())
    place = open_place(sweep["device"] if is_executed else "cpu", sweep["output_dir"])
    check_placements(arms.values(), place.device, sweep["device"])
    place.output_dir.mkdir(parents=True, exist_ok=True)
    environments = {name: environment_of(arm, place.environment) for name, arm in arms.items()}
    digests = {name: arm_digest(arm.config, environments[name]) for name, arm in arms.items()}
    devices = dict.fromkeys(environment["device"] for environment in environments.values())
    place.environment["device"] = " and ".join(devices)
    return Study(
        **vars(place),
        environments=environments,
        arms=arms,
        slo=sweep["slo"],
        tracking=sweep.get("tracking"),
        arm_digests=digests,
        failures={},
        price_per_gpu_hour=sweep.get("price_per_gpu_hour"),
        is_closed_loop=sweep.get("users") is not None,
    )


def compute_or_reuse(
    study: Study, point: Point, engines: EngineCache, progress: SweepProgress, gpu: GpuWatch | None, fresh: bool
) -> None:
    metrics = None if fresh else read_metrics(study.folder(point.name), study.slo)
    is_reused = metrics is not None
    if metrics is None:
        check_writable(study.output_dir, study.output_dir / "points")
        try:
            metrics = compute_point(study, point, engines, progress, gpu)
        except Exception as error:
            is_disk_full = isinstance(error, OSError) and error.errno in DISK_FULL
            if is_disk_full or os.environ.get("HYDRA_FULL_ERROR"):
                raise  # the other points could not be written either
            problem = message(describe_error(error))
            progress.fail_point(str(point), problem if problem not in study.failures else None)
            study.failures.setdefault(problem, []).append(point)
            return
        save_table(study)
    progress.end_point(str(point), metrics, is_reused)


def name_points(points: list[Point]) -> str:
    """A single point by its name, several by their number and arms."""
    arms = dict.fromkeys(point.arm for point in points)
    return str(points[0]) if len(points) == 1 else f"{len(points)} points of {', '.join(arms)}"


def save_table(study: Study) -> pd.DataFrame:
    """Write `points.csv`; its rows."""
    with study.points() as points:
        write_table(study.output_dir, points)
        return points


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
        told = f"finished points are on disk ({num_points}); {command} goes on from there"
        raise KeyboardInterrupt(told) from None
    finally:
        save_table(study)


def compute_point(
    study: Study, point: Point, engines: EngineCache, progress: SweepProgress, gpu: GpuWatch | None
) -> dict[str, float]:
    """Replay the point and write it; its metrics."""
    arm, folder = study.arms[point.arm], study.folder(point.name)
    with TemporaryFile(dir=study.output_dir) as file:  # it goes with the process, however that ends
        with telling_size(folder / "requests.parquet", file.tell):
            replayed = replay_where_placed(point, arm, engines, progress, None if arm.is_modelled else gpu, file)
        record = record_of(study, point, replayed)
        write_point(folder, point, file, replayed.steps, record)
    return record["metrics"]


def record_of(study: Study, point: Point, replayed: ReplayedPoint) -> dict[str, Any]:
    """What `point.json` says, beside which point it is and what its tables are."""
    arm = study.arms[point.arm]
    num_servers = replayed.engine["num_servers"]
    metrics = summarize(replayed.requests, replayed.steps, study.slo, num_servers=num_servers)
    config = config_of(point, arm)
    return {
        "config": config,
        "files": fingerprint_files(config),
        "environment": study.environments[point.arm],
        "engine": replayed.engine,
        "trace": replayed.trace,
        "gpu": replayed.gpu,
        "placement": replayed.placement,
        "slo": study.slo,
        "metrics_version": metrics_version(),
        "metrics": metrics,
    }


def representative_points(study: Study, points: pd.DataFrame, rate: float) -> dict[str, Path]:
    """Per arm, the folder of its first seed at `rate`, where it has that point."""
    at_rate = points[points["rate"] == rate]
    return {str(arm): study.folder(rows["point"].iloc[0]) for arm, rows in at_rate.groupby("arm", sort=False)}


def read_tables(folders: dict[str, Path], file: str, **options: object) -> dict[str, pd.DataFrame]:
    return {arm: pd.read_parquet(folder / file, **options) for arm, folder in folders.items()}
