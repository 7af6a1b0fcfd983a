"""Finished points on disk: `points/<arm>-rate<rate>-seed<seed>-<digest>/{requests.parquet, steps.parquet, point.json}`.

The digest covers config, files, the source that a replay runs through, torch and device, so that a point is reused
exactly when it would come out the same. A folder appears under its name only when it is complete, and counts only while
its tables are those that point.json describes.
"""

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from framework.checks import shown
from framework.measure.metrics import METRIC_OF, STEP_COLUMNS, metric_names, summarize
from framework.paths import is_writable, locate
from framework.study.files import UNFINISHED, digest_of, locked, write_atomically, write_json
from framework.study.load import Load
from framework.study.parquet import copy_file, read_rows, write_parquet
from framework.study.provenance import Environment, metrics_version
from framework.study.records import POINT_RECORD, PointRecord, TableRecord, check_record
from framework.trace.recorded import get_published

TABLES = ("requests.parquet", "steps.parquet")
EARLIER = ".earlier-"  # before the name of a point while another takes its place


@dataclass(frozen=True)
class Point:
    """One replay: what identifies it, and its described arm."""

    arm: str
    load: Load
    seed: int
    arm_digest: str

    @property
    def name(self) -> str:
        digest = digest_of([self.arm_digest, *self.load.record.values(), self.seed])
        return f"{self.arm}-{self.load.label}-seed{self.seed}-{digest[:8]}"

    def __str__(self) -> str:
        return f"{self.arm}, {self.load}, seed {self.seed}"


def point_of(record: PointRecord) -> Point:
    load = Load(record["rate"], record.get("users"))
    return Point(record["arm"], load, record["seed"], record["arm_digest"])


def arm_digest(config: dict[str, object], environment: Environment) -> str:
    """Of all that an arm's points depend on, but their rate and seed."""
    code, device, torch = environment["code_version"], environment["device"], environment["packages"]["torch"]
    return digest_of([config, code, device, torch, fingerprint_files(config)])


def fingerprint_files(config: object) -> dict[str, str]:
    """Every `path` of the config that is there, with a hash of what it is; and published files."""
    if not isinstance(config, dict | list):
        return {}
    prints: dict[str, str] = {}
    for item in config.values() if isinstance(config, dict) else config:
        prints |= fingerprint_files(item)
    if isinstance(config, dict) and config.get("path") is not None:
        prints |= fingerprint(str(config["path"]))
    elif isinstance(config, dict) and config.get("url") is not None:
        prints |= fingerprint_published(str(config["file"]), config["url"], config["sha256"])
    return prints


def fingerprint_published(file: str, url: str, sha256: str | None) -> dict[str, str]:
    """A published sum is checked when the file is read; without one it is downloaded now, since only its bytes tell."""
    if sha256 is not None:
        return {file: sha256}
    get_published(file, url, None)
    return fingerprint(file)


def fingerprint(path: str) -> dict[str, str]:
    """The SHA-256 of a file, or a hash of the names, sizes and times of all files in a folder."""
    place = locate(path)
    if place.is_file():
        with place.open("rb") as file:
            return {path: hashlib.file_digest(file, "sha256").hexdigest()}
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.is_file())
        stats = [(str(file.relative_to(place)), file.stat()) for file in files]
        return {path: digest_of([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])}
    return {}


def write_point(
    folder: Path,
    point: Point,
    requests: pd.DataFrame | IO[bytes],
    steps: pd.DataFrame,
    record: Mapping[str, object],
) -> None:
    """Write all files beside `folder` and rename them into place together, which takes what was there away.

    `requests` are a table, or the Parquet file that has its rows already.

    A job that is killed between two of these operations leaves the earlier point or the new one: see `settle`.
    """
    points, unfinished = folder.parent, folder.with_name(UNFINISHED + folder.name)
    earlier = folder.with_name(EARLIER + folder.name)
    identity = {"arm": point.arm, **point.load.record, "seed": point.seed, "arm_digest": point.arm_digest}
    described: dict[str, TableRecord] = {}
    with settled(points.parent):
        unfinished.mkdir(parents=True)
        try:
            for name, table in zip(TABLES, (requests, steps), strict=True):
                if isinstance(table, pd.DataFrame):
                    write_parquet(unfinished / name, table)
                else:
                    copy_file(table, unfinished / name)
                described[name] = describe_table(unfinished / name)
            write_json(unfinished / "point.json", {**identity, **record, "tables": described})
            if folder.exists():  # a job beside this one was quicker, or `fresh` redoes it
                folder.rename(earlier)
            unfinished.rename(folder)
        finally:
            settle(points.parent)


@contextmanager
def settled(output_dir: Path) -> Iterator[None]:
    """The study's folder, locked and without what killed jobs left: a point in it is the earlier one or the new one."""
    with locked(output_dir):
        if is_writable(output_dir):
            settle(output_dir)
        yield


def settle(output_dir: Path) -> None:
    """Bring a point back whose successor never came, and remove what else is left."""
    points = output_dir / "points"
    for earlier in points.glob(f"{EARLIER}*"):
        folder = points / earlier.name.removeprefix(EARLIER)
        if not folder.exists():
            earlier.rename(folder)
    for pattern in (f"points/{EARLIER}*", f"points/{UNFINISHED}*", f"{UNFINISHED}*", ".points.csv-*"):
        for leftover in output_dir.glob(pattern):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def read_metrics(folder: Path, slo: dict[str, float]) -> dict[str, float] | None:
    """The metrics of a finished point; None if there is none."""
    with settled(folder.parents[1]):
        record = load_record(folder)
        return None if record is None else current_metrics(folder, record, slo)


def current_metrics(folder: Path, record: PointRecord, slo: dict[str, float]) -> dict[str, float]:
    """The metrics of a point's record; computed again from its tables if they are for other SLOs or by other code."""
    if record["slo"] == slo and has_current_metrics(record):
        return {name: math.nan if value is None else value for name, value in record["metrics"].items()}
    requests_file, steps_file = (folder / file for file in TABLES)
    requests, steps = read_rows(requests_file), pd.read_parquet(steps_file, columns=[*STEP_COLUMNS])
    metrics = summarize(requests, steps, slo, num_servers=record["engine"].get("num_servers", 1))
    changed = {"slo": slo, "metrics_version": metrics_version(), "metrics": metrics}
    if is_writable(folder):
        write_json(folder / "point.json", {**record, **changed})
    return metrics


def has_current_metrics(record: PointRecord) -> bool:
    """A point from before, which has no version, has not."""
    return record.get("metrics_version") == metrics_version()


def load_record(folder: Path) -> PointRecord | None:
    """What `point.json` says of a finished point; None, with a warning, where the folder is damaged or no point's."""
    record = read_record(folder)
    return record if record is not None and is_whole(folder, record) else None


def read_record(folder: Path) -> PointRecord | None:
    """What `point.json` says, whatever the tables beside it are."""
    if not folder.exists():
        return None
    try:
        return parse_record(folder)
    except (ValueError, OSError) as error:
        ignore(folder, f"point.json: {error}")
        return None


def parse_record(folder: Path) -> PointRecord:
    """ValueError or OSError for a `point.json` that is damaged or none."""
    record: PointRecord = json.loads((folder / "point.json").read_bytes())
    check_record(POINT_RECORD, record)
    lacking = sorted(set(metric_names()) - set(record["metrics"]))
    if lacking and has_current_metrics(record):
        raise ValueError(f"no metrics.{lacking[0]}")
    return record


def is_whole(folder: Path, record: PointRecord) -> bool:
    """Whether the folder's name and tables are those of its record; a warning says what is not."""
    try:
        check_whole(folder, record)
    except (ValueError, OSError) as error:
        ignore(folder, str(error))
        return False
    return True


def check_whole(folder: Path, record: PointRecord) -> None:
    """ValueError or OSError where the folder's name or tables are not those of its record."""
    name = point_of(record).name
    if folder.name != name:
        raise ValueError(f"point.json is of {name}")
    tables = record.get("tables", {})
    if set(tables) != {*TABLES}:
        raise ValueError(f"point.json describes {', '.join(tables) or 'no tables'}")
    for file, expected in tables.items():
        check_table(folder / file, expected)


def check_table(path: Path, expected: TableRecord) -> None:
    """ValueError or OSError if the file at `path` is not the one that was written."""
    found = describe_file(path, path.stat().st_mtime_ns)
    for key, value in expected.items():
        if found[key] != value:
            raise ValueError(f"{path.name}: {key} is {shown(found[key])}, in point.json {shown(value)}")


@cache
def describe_file(path: Path, mtime_ns: int) -> Mapping[str, object]:
    """Once per state of the file: the table of a study is made after every point."""
    try:
        return describe_table(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: {' '.join(str(error).split())}") from error


def describe_table(path: Path) -> TableRecord:
    """Of a Parquet file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        found = pq.ParquetFile(file)
        return {"num_rows": found.metadata.num_rows, "columns": found.schema_arrow.names, "sha256": sha256}


def ignore(folder: Path, problem: str) -> None:
    warnings.warn(f"{folder} is no finished point: {problem}; ignored", stacklevel=3)


def point_table(
    output_dir: Path, arm_digests: dict[str, str], slo: dict[str, float], is_closed_loop: bool = False
) -> pd.DataFrame:
    """Every finished point of these arms in the folder, whichever run or job computed it, one row each.

    With `is_closed_loop` these are the points of users, else those of rates.
    """
    rows = []
    for path in sorted((output_dir / "points").glob("[!.]*/point.json")):
        record = read_record(path.parent)
        if record is None or arm_digests.get(record["arm"]) != record["arm_digest"]:
            continue
        if ("users" in record) != is_closed_loop or not is_whole(path.parent, record):
            continue
        metrics = current_metrics(path.parent, record, slo)
        key = {"arm": record["arm"], "rate": load_of(record), "seed": record["seed"]}
        users = {"users": record["users"]} if "users" in record else {}
        offered_rate = record["trace"]["offered_rate"] or math.inf  # null: all at once
        rows.append(key | metrics | {"offered_rate": offered_rate, **users, "point": path.parent.name})
    if not rows:
        return pd.DataFrame(columns=["arm", "rate", "seed", *METRIC_OF, "point"])
    table = pd.DataFrame(rows)
    undefined = table.columns[table.isna().all()]  # null in every record: not a column of numbers yet
    table = table.astype(dict.fromkeys(undefined, float)).copy()  # of many parts else, which pandas warns of
    all_at_once = table["waiting_growth"].isna() & (table["offered_rate"] == math.inf)
    table["waiting_growth"] = table["waiting_growth"].mask(all_at_once, math.inf)
    position = table["arm"].map({arm: index for index, arm in enumerate(arm_digests)})
    order = table.assign(position=position).sort_values(["position", "rate", "seed"]).index
    table = table.loc[order].drop_duplicates(["arm", "rate", "seed"])  # the recorded rate may be asked for as a number
    return table.reset_index(drop=True)


def load_of(record: PointRecord) -> float:
    """What points with equal loads have in common: the rate asked for, the trace's own, or the number of users."""
    if "users" in record:
        return float(record["users"])
    trace = record["trace"]
    recorded_rate = trace.get("session_rate", trace["offered_rate"]) or math.inf  # null: all at once
    return recorded_rate if record["rate"] is None else record["rate"]


def write_table(output_dir: Path, table: pd.DataFrame) -> Path:
    """`points.csv`, unless nothing has finished or the folder is read only: then what an earlier run wrote stays."""
    path = output_dir / "points.csv"
    if not table.empty and is_writable(output_dir):
        write_atomically(path, table.to_csv(index=False))
    return path
