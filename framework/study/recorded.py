"""Arms that repeat recorded runs: which points of a folder are of such an arm, and what a page is told of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.config import describe, suggest, with_keywords
from framework.cost.model import Calibrated
from framework.cost.record import NEEDED, Record, Run
from framework.cost.subject import Target, read_model, without_call
from framework.engine.measured import graph_sizes
from framework.engine.recorded import RecordedEngine
from framework.paths import locate
from framework.study.files import digest_of, finite
from framework.study.points import TABLES, check_whole, parse_record, point_of
from framework.study.provenance import code_version
from framework.study.records import PointRecord, RecordedRecord

if TYPE_CHECKING:  # which calls the functions here
    from framework.build import MakeEngine
    from framework.study.arms import Arm
    from framework.study.roles import Group

RECORDED = f"{RecordedEngine.__module__}.{RecordedEngine.__qualname__}"
# The parts that decide which steps there are
REPLAYED = ("scheduler", "trace", "lora", "servers", "router", "view_delay", "decode_router", "link", "migrate")
OF_ENGINE = ("num_blocks", "block_size", "num_adapter_slots", "blocks_per_adapter", "num_swap_blocks")

MAX_NUM_SEQS = 1024  # of a scheduler that has no such keyword: graphs of fewer rows are the same for any number

Found = dict[Path, PointRecord]  # points by their folders


def with_record(name: str, arm: Arm | Group) -> MakeEngine:
    """Its engine, which names the content of its record. ValueError naming the arm where it has none."""
    try:
        if arm.clock == "wall":
            raise ValueError("clock=wall is real time, and engine=recorded executes nothing: take clock=virtual")
        record, given = record_of(arm.config), describe(arm.engine)["sha256"]
        if given not in (None, record.sha256):
            raise ValueError(f"engine.points={record.name} holds {record.sha256}, not engine.sha256={given}")
    except ValueError as error:
        raise ValueError(f"arms.{name}: {error}") from error
    return with_keywords(arm.engine, sha256=record.sha256)


def record_of(config: dict[str, Any]) -> Record:
    """What an arm of this config repeats. ValueError naming both sides where its folder has nothing of it."""
    engine = config["engine"]
    name, arm = engine["points"], engine["arm"]
    points = of_arm(name, latest(read_points(name)), arm)
    target = read_model(config)
    points = of_model(name, points, target, config)
    check_one_engine(name, points)
    record = next(iter(points.values()))
    was, environment = record["engine"], record["environment"]
    num_slots = was["num_adapter_slots"]
    memory = config["lora"].get("memory"), record["config"]["lora"].get("memory")
    if "unified" in memory and memory[0] != memory[1]:
        raise ValueError(f"engine.points={name} has lora.memory={memory[1]}, and this arm lora.memory={memory[0]}")
    return Record(
        name=name,
        device=environment["device"],
        git_commit=environment["git_commit"],
        is_older=any(one["environment"]["code_version"] != code_version() for one in points.values()),
        target=target,
        engine=Calibrated(
            num_blocks=was["num_blocks"],
            block_size=was["block_size"],
            num_cache_bytes=was["num_cache_bytes"],
            slot_bytes=was["num_adapter_bytes"] // (num_slots + 1),
            kv_dtype="as recorded",
            num_steps_ahead=was["num_steps_ahead"],
            are_loads_beside=environment["device_type"] == "cuda",
            switches=was["switches"],
        ),
        num_recorded_slots=num_slots,
        num_recorded_bytes=was["num_adapter_bytes"],
        blocks_per_adapter=was["blocks_per_adapter"],
        num_swap_blocks=was["num_swap_blocks"],
        refused={key: reason for one in points.values() for key, reason in one["engine"]["refused_adapters"].items()},
        runs=[run_in(folder, one) for folder, one in points.items()],
        sha256=digest_of([[folder.name, *hashes(one)] for folder, one in points.items()])[:16],
    )


def run_in(folder: Path, record: PointRecord) -> Run:
    engine, max_num_seqs = record["engine"], record["config"]["scheduler"].get("max_num_seqs", MAX_NUM_SEQS)
    return Run(
        folder=folder,
        arm=record["arm"],
        rate=record["rate"],
        key=run_key(record["config"]),
        num_steps_ahead=engine["num_steps_ahead"],
        sizes=graph_sizes(engine["switches"], max_num_seqs),
    )


def run_key(config: dict[str, Any]) -> str:
    """Equal for configs of points that are equal but for model, engine and clock."""
    return digest_of(finite([config.get(part) for part in REPLAYED]))


def read_points(name: str) -> Found:
    """The points in a study's folder, in its `points`, or a single one.

    Those of recorded arms are no record, nor are those in real time, whose pauses are no step's. Raises ValueError for
    a folder without any other, and naming the point that is damaged, older, or without steps.
    """
    place = locate(name)
    if not place.is_dir():
        raise ValueError(f"engine.points={name}: there is no such folder")
    found = [place] if (place / "point.json").exists() else []
    found = found or sorted(path.parent for path in place.glob("points/[!.]*/point.json"))
    found = found or sorted(path.parent for path in place.glob("[!.]*/point.json"))
    if not found:
        raise ValueError(
            f"engine.points={name} has no finished point: name a study's folder, its folder points, or one in there"
        )
    points = {folder: read_point(name, folder) for folder in found}
    records = {folder: one for folder, one in points.items() if is_record(one["config"])}
    if not records:
        raise ValueError(
            f"engine.points={name} has only points of clock=wall and engine=recorded, which cannot be repeated: "
            "record with clock=virtual and another engine"
        )
    return records


def is_record(config: dict[str, Any]) -> bool:
    return bool(config["engine"]["_target_"] != RECORDED and config["clock"] == "virtual")


def read_point(name: str, folder: Path) -> PointRecord:
    try:
        record = parse_record(folder)
        check_whole(folder, record)
        lacking = [key for key in ("config", "environment") if key not in record]
        lacking += [key for key in ("num_steps_ahead", "refused_adapters", "switches") if key not in record["engine"]]
        for file, columns in NEEDED.items():
            lacking += [f"{file}'s {column}" for column in columns if column not in record["tables"][file]["columns"]]
    except (ValueError, OSError) as error:
        raise ValueError(f"engine.points={name}: {folder.name} is no finished point: {error}") from None
    if lacking:
        raise ValueError(
            f"engine.points={name}: {folder.name} is of an earlier version, which kept no {', '.join(lacking[:3])}: "
            "record it again with this one"
        )
    if not record["tables"]["steps.parquet"]["num_rows"]:
        raise ValueError(f"engine.points={name}: {folder.name} has no steps")
    return record


def latest(points: Found) -> Found:
    """Of points of one arm, load, seed and config that were measured again the last one."""
    found: dict[tuple[object, ...], Path] = {}
    for folder in sorted(points, key=lambda folder: ((folder / "steps.parquet").stat().st_mtime_ns, folder.name)):
        record = points[folder]
        found[record["arm"], record["rate"], record.get("users"), record["seed"], run_key(record["config"])] = folder
    return {folder: points[folder] for folder in sorted(found.values())}


def of_arm(name: str, points: Found, arm: str | None) -> Found:
    """Those of the arm that `engine.arm` names; None: all."""
    arms = dict.fromkeys(record["arm"] for record in points.values())
    if arm is not None and arm not in arms:
        raise ValueError(f"engine.arm={arm}: engine.points={name} has no point of it{suggest(arm, arms)}")
    return {folder: record for folder, record in points.items() if arm in (None, record["arm"])}


def of_model(name: str, points: Found, target: Target, config: dict[str, Any]) -> Found:
    """Those of such a model with such adapters; where some have the very same adapters and model, these."""
    recorded = {folder: read_model(record["config"]).subject for folder, record in points.items()}
    found = {folder: points[folder] for folder, subject in recorded.items() if subject == target.subject}
    if not found:
        folder, subject = min(recorded.items(), key=lambda item: len(item[1].differences(target.subject)))
        differences = "; ".join(subject.differences(target.subject)[:3])
        raise ValueError(f"engine.points={name} is of another arm: {points[folder]['arm']} has {differences}")
    parts = ("model", "quantization", "lora")
    wanted = digest_of(finite([config[part] for part in parts]))
    same = {
        folder: record
        for folder, record in found.items()
        if digest_of(finite([record["config"][part] for part in parts])) == wanted
    }
    return same or found


def check_one_engine(name: str, points: Found) -> None:
    """ValueError naming two arms whose engines differ, and in what."""
    first = next(iter(points.values()))
    was = engine_of(first)
    for record in points.values():
        differing = [key for key, value in engine_of(record).items() if was.get(key) != value]
        if differing:
            key = differing[0]
            raise ValueError(
                f"engine.points={name} has several engines: {key}={was.get(key)} in {point_of(first)}, and "
                f"{engine_of(record)[key]} in {point_of(record)}: choose one with engine.arm, or by its folder"
            )


def engine_of(record: PointRecord) -> dict[str, object]:
    """What decides how long its steps take, and which there are."""
    return without_call(record["config"]["engine"]) | {key: record["engine"].get(key) for key in OF_ENGINE}


def hashes(record: PointRecord) -> Iterable[str]:
    return (record["tables"][file]["sha256"] for file in TABLES)


def follow(engine: RecordedEngine, config: dict[str, Any], arm: str, server: int) -> None:
    """Tell an engine which point comes, and which of its servers it is."""
    engine.follow(run_key(config), arm, server)


def recorded_rates(arms: dict[str, Arm]) -> list[float] | None:
    """Those of the record, where every arm repeats one and it has rates."""
    if not all(arm.is_recorded for arm in arms.values()):
        return None
    rates = {run.rate for arm in arms.values() for run in record_of(arm.config).runs}
    return sorted(rate for rate in rates if rate is not None) or None


def recorded_record(engines: list[RecordedEngine]) -> RecordedRecord:
    """After a replay of these servers."""
    record = engines[0].record
    furthest: dict[str, float] = {}
    for engine in engines:
        for name, factor in engine.outside.furthest.items():
            furthest[name] = max(furthest.get(name, 1.0), factor)
    return {
        "name": record.name,
        "device": record.device,
        "git_commit": record.git_commit,
        "is_older": record.is_older,
        "num_steps": sum(engine.num_replayed + engine.outside.num_steps for engine in engines),
        "num_replayed": sum(engine.num_replayed for engine in engines),
        "num_seen": sum(engine.num_seen for engine in engines),
        "num_outside": sum(engine.outside.num_outside for engine in engines),
        "furthest": dict(furthest),
        "has_outputs": all(engine.has_outputs for engine in engines),
    }
