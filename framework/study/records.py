"""What the JSON files of a study hold where they are read again: others are damaged, or something else's."""

import json
import warnings
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from framework.measure.gpu_state import GpuRecord

T = TypeVar("T")
Number = float | None
Interval = Annotated[list[Number], Field(min_length=3, max_length=3)]  # value, low, high


class TraceRecord(TypedDict):
    """The requests that a trace offers: their number, those refused (reason → requests), and their rate.

    `dropped` are no requests (reason → rows); `offered_rate` (1/s) null: all came at once.
    """

    num_requests: int
    dropped: dict[str, int]
    refused: NotRequired[dict[str, int]]  # points from before lack it: they left such requests out
    ignored: NotRequired[list[str]]  # columns of the trace without an effect
    may_share: NotRequired[bool]  # prompts that begin alike; earlier points lack it
    offered_rate: Number
    num_sessions: NotRequired[int]  # requests that follow no other's answer; earlier points lack it: there all are
    session_rate: NotRequired[Number]  # of these, by the trace; earlier points lack it: there it is the offered rate


class ModelledRecord(TypedDict):
    """The cost model of a replay that executed no step; how many steps are further than any that it was fitted on.

    `furthest`: feature → how many times as far; `is_older`: the source that computes steps has changed since; `error`
    is of steps that were not fitted, as in framework.cost.error.
    """

    name: str
    device: str
    git_commit: str | None
    is_older: bool
    num_steps: int
    num_outside: int
    furthest: dict[str, Number]
    notes: list[str]
    error: NotRequired[dict[str, Number]]  # earlier points lack it


class RecordedRecord(TypedDict):
    """The record of a replay that executed no step, and its steps: repeated, of features that were seen, or outside.

    What is left was interpolated. `furthest` as in ModelledRecord; `is_older`: the source that a replay runs through
    has changed since; `has_outputs`: the record has the tokens of these requests.
    """

    name: str
    device: str
    git_commit: str | None
    is_older: bool
    num_steps: int
    num_replayed: int
    num_seen: int
    num_outside: int
    furthest: dict[str, Number]
    has_outputs: bool


class EngineRecord(TypedDict):
    """What an engine made of its options; several servers have each such a one."""

    num_blocks: int
    block_size: int
    max_model_len: int
    num_adapter_slots: int
    blocks_per_adapter: NotRequired[int]  # of the KV cache; earlier points lack it, and have none
    num_adapter_bytes: int
    num_cache_bytes: int
    num_swap_blocks: NotRequired[int]  # earlier points lack it
    num_servers: NotRequired[int]  # earlier points lack it, and have one
    num_steps_ahead: NotRequired[int]  # as decided for this replay; earlier points lack it
    refused_adapters: NotRequired[dict[str, str]]  # id → reason; earlier points lack it
    modelled: NotRequired[ModelledRecord]  # where no step was executed
    recorded: NotRequired[RecordedRecord]  # likewise
    switches: NotRequired[dict[str, bool]]  # fused, compile, cuda_graphs, overlap as decided; earlier points lack it


class PlacementRecord(TypedDict):
    """Servers that had a device each, in real time; what their processes' clocks said, and who ended too early.

    `clock_offsets`: each server's clock - the driver's (s), known to half of the `clock_round_trips` (s). `died`:
    servers; their steps are not in the tables. `num_rerouted`: how often a request began anew at another server.
    """

    placement: str
    clock_offsets: list[float]
    clock_round_trips: list[float]
    died: list[int]
    num_rerouted: int


class TableRecord(TypedDict):
    """What a Parquet file holds; `sha256` is of the file."""

    num_rows: int
    columns: list[str]
    sha256: str


class PointRecord(TypedDict):
    """`point.json`, as far as it is read again."""

    arm: str
    rate: Number
    seed: int
    users: NotRequired[int]  # of a closed loop; other points lack it
    arm_digest: str
    slo: dict[str, float]
    metrics_version: NotRequired[str]  # points from before lack it, and the tables
    tables: NotRequired[dict[str, TableRecord]]  # by file
    metrics: dict[str, Number]
    trace: TraceRecord
    config: NotRequired[dict[str, Any]]  # of the arm, with the point's rate and seed
    environment: NotRequired[dict[str, Any]]  # as provenance.Environment
    engine: EngineRecord
    placement: NotRequired[PlacementRecord | None]  # null where servers share a device; earlier points lack it
    gpu: NotRequired[GpuRecord | None]  # null where it was not watched; earlier points lack it


POINT_RECORD = TypeAdapter(PointRecord)


def read_known(path: Path, shape: TypeAdapter[dict[str, T]], instead: str) -> dict[str, T]:
    """What the file at `path` holds by its keys; nothing where there is none, or a damaged one.

    Then a warning says what happens `instead`.
    """
    if not path.exists():
        return {}
    try:
        known: dict[str, T] = json.loads(path.read_text())
        check_record(shape, known)
    except ValueError as error:
        warnings.warn(f"{path} is damaged: {error}; {instead}", stacklevel=2)
        return {}
    return known


def check_record(shape: TypeAdapter[Any], record: object) -> None:
    """ValueError naming what `record` lacks, or what in it is of another type than in `shape`."""
    try:
        shape.validate_python(record, strict=True)
    except ValidationError as error:
        problems = error.errors()
        missing = [place(problem["loc"]) for problem in problems if problem["type"] == "missing"]
        if missing:
            raise ValueError(f"no {', '.join(missing)}") from None
        raise ValueError(f"{place(problems[0]['loc'])}: {problems[0]['msg'].lower()}") from None


def place(parts: tuple[int | str, ...]) -> str:
    return ".".join(map(str, parts)) or "the whole"
