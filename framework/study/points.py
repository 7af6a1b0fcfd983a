"""Finished points on disk: `points/<arm>-rate<rate>-seed<seed>-<digest>/{requests.parquet, steps.parquet, point.json}`.

The digest covers config, files, the source that a replay runs through, torch and device, so that a point is reused
exactly when it would come out the same. A folder appears under its name only when it is complete.
"""

import hashlib
import json
import math
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from framework.measure.metrics import METRIC_OF, metric_names, summarize
from framework.paths import locate
from framework.study.files import digest_of, locked, write_atomically, write_json
from framework.study.provenance import Environment, metrics_version
from framework.study.records import POINT_RECORD, PointRecord, check_record
from framework.trace.recorded import available

TABLES = ("requests.parquet", "steps.parquet")


@dataclass(frozen=True)
class Point:
    """One replay: what identifies it, and its described arm."""

    arm: str
    rate: float | None  # requests/s; None: as recorded
    seed: int
    arm_digest: str

    @property
    def name(self) -> str:
        digest = digest_of([self.arm_digest, self.rate, self.seed])
        return f"{self.arm}-{self.rate_label}-seed{self.seed}-{digest[:8]}"

    @property
    def rate_label(self) -> str:
        return "recorded" if self.rate is None else f"rate{self.rate:g}"

    def __str__(self) -> str:
        rate = "recorded rate" if self.rate is None else f"{self.rate:g} req/s"
        return f"{self.arm}, {rate}, seed {self.seed}"


def arm_digest(config: dict[str, object], environment: Environment) -> str:
    """Of all that an arm's points depend on, but their rate and seed."""
    code, device, torch = environment["code_version"], environment["device"], environment["packages"]["torch"]
    return digest_of([config, code, device, torch, fingerprint_files(config)])


def fingerprint_files(config: object) -> dict[str, str]:
    """Every `path` of the config that is there, with a hash of what it is."""
    if not isinstance(config, dict | list):
        return {}
    prints: dict[str, str] = {}
    for item in config.values() if isinstance(config, dict) else config:
        prints |= fingerprint_files(item)
    if isinstance(config, dict) and config.get("path") is not None:
        prints |= fingerprint(str(config["path"]), config.get("url"), config.get("sha256"))
    return prints


def fingerprint(path: str, url: str | None, sha256: str | None) -> dict[str, str]:
    """The SHA-256 of a file, or a hash of the names, sizes and times of all files in a folder.

    A published sum is checked when the file is read; a file without one is downloaded now, since only its bytes tell.
    """
    place = locate(path)
    if url is not None and sha256 is not None:
        return {path: sha256}
    if url is not None:
        available(path, url, None)
    if place.is_file():
        with place.open("rb") as file:
            return {path: hashlib.file_digest(file, "sha256").hexdigest()}
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.is_file())
        stats = [(str(file.relative_to(place)), file.stat()) for file in files]
        return {path: digest_of([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])}
    return {}


def write_point(
    folder: Path, point: Point, requests: pd.DataFrame, steps: pd.DataFrame, record: Mapping[str, object]
) -> None:
    """Write all files beside `folder` and rename them into place together."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as parent:
        unfinished = Path(parent) / folder.name
        unfinished.mkdir()
        requests.to_parquet(unfinished / "requests.parquet", compression="zstd")
        steps.to_parquet(unfinished / "steps.parquet", compression="zstd")
        identity = {"arm": point.arm, "rate": point.rate, "seed": point.seed, "arm_digest": point.arm_digest}
        write_json(unfinished / "point.json", {**identity, **record})
        with locked(folder.parents[1]):
            if folder.exists():  # a job beside this one was quicker, or `fresh` redoes it
                folder.rename(Path(parent) / "earlier")
            unfinished.rename(folder)


def read_metrics(folder: Path, slo: dict[str, float]) -> dict[str, float] | None:
    """The metrics of a finished point; None if there is none."""
    record = load_record(folder)
    return None if record is None else current_metrics(folder, record, slo)


def current_metrics(folder: Path, record: PointRecord, slo: dict[str, float]) -> dict[str, float]:
    """The metrics of a point's record; computed again from its tables if they are for other SLOs or by other code."""
    if record["slo"] == slo and has_current_metrics(record):
        return {name: math.nan if value is None else value for name, value in record["metrics"].items()}
    requests, steps = (pd.read_parquet(folder / file) for file in TABLES)
    metrics = summarize(requests, steps, slo)
    changed = {"slo": slo, "metrics_version": metrics_version(), "metrics": metrics}
    write_json(folder / "point.json", {**record, **changed})
    return metrics


def has_current_metrics(record: PointRecord) -> bool:
    """A point from before, which has no version, has not."""
    return record.get("metrics_version") == metrics_version()


def load_record(folder: Path) -> PointRecord | None:
    """What `point.json` says; None, with a warning, where the folder is damaged or no point's."""
    if not folder.exists():
        return None
    file = "point.json"
    try:
        record: PointRecord = json.loads((folder / file).read_text())
        check_record(POINT_RECORD, record)
        lacking = sorted(set(metric_names()) - set(record["metrics"]))
        if lacking and has_current_metrics(record):
            raise ValueError(f"no metrics.{lacking[0]}")
        for file in TABLES:
            pq.read_metadata(folder / file)  # stands at the end: not there if the file was emptied or cut
    except (ValueError, OSError) as error:
        warnings.warn(f"{folder} is no finished point: {file}: {error}; ignored", stacklevel=2)
        return None
    return record


def point_table(output_dir: Path, arm_digests: dict[str, str], slo: dict[str, float]) -> pd.DataFrame:
    """Every finished point of these arms in the folder, whichever run or job computed it, one row each."""
    rows = []
    for path in sorted((output_dir / "points").glob("*/point.json")):
        record = load_record(path.parent)
        if record is None or arm_digests.get(record["arm"]) != record["arm_digest"]:
            continue
        metrics = current_metrics(path.parent, record, slo)
        offered_rate = record["trace"]["offered_rate"] or math.inf  # null: all at once
        rate = offered_rate if record["rate"] is None else record["rate"]
        key = {"arm": record["arm"], "rate": rate, "seed": record["seed"]}
        rows.append(key | metrics | {"offered_rate": offered_rate, "point": path.parent.name})
    if not rows:
        return pd.DataFrame(columns=["arm", "rate", "seed", *METRIC_OF, "point"])
    table = pd.DataFrame(rows)
    undefined = table.columns[table.isna().all()]  # null in every record: not a column of numbers yet
    table[undefined] = table[undefined].astype(float)
    table["waiting_growth"] = table["waiting_growth"].fillna(math.inf)  # all at once
    position = table["arm"].map({arm: index for index, arm in enumerate(arm_digests)})
    order = table.assign(position=position).sort_values(["position", "rate", "seed"]).index
    table = table.loc[order].drop_duplicates(["arm", "rate", "seed"])  # the recorded rate may be asked for as a number
    return table.reset_index(drop=True)


def write_table(output_dir: Path, table: pd.DataFrame) -> Path:
    """`points.csv`, unless nothing has finished: then what an earlier run wrote stays."""
    path = output_dir / "points.csv"
    if not table.empty:
        write_atomically(path, table.to_csv(index=False))
    return path
