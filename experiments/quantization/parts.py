"""The parts of experiment=quantization that go through the arms one by one, each on disk after every arm."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch

from framework.build import Decoder, at_most, free, make_scheduler, num_blocks_for, replay_trace
from framework.config import describe, with_keywords
from framework.engine.measured import MeasuredEngine, measured
from framework.engine.torch_engine.kv_cache import attach_cache
from framework.errors import StudyError, describe_error
from framework.measure.ceilings import Ceilings
from framework.measure.quality import block_error, compare_models, read_tokens, weight_errors
from framework.measure.serving import max_num_seqs_of
from framework.measure.steps import get_ready, measure_cases
from framework.models.footprint import cache_footprint, footprint
from framework.models.tokenizer import load_tokenizer
from framework.study.arms import Arm
from framework.study.files import GrowingTable, digest_of, locked, write_json
from framework.study.place import Place
from framework.study.sweep import Study
from framework.trace.prompts import make_requests

MAX_FORWARD_TOKENS, MAX_FORWARD_LOGITS = 2**15, 2**28


@dataclass(frozen=True, slots=True)
class Text:
    """A file, read in windows of `window` tokens; `num_tokens` None: to its end."""

    path: Path
    window: int
    num_tokens: int | None


@dataclass(frozen=True, slots=True)
class Prompt:
    text: str
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class Steps:
    """Decode steps to time: `num_steps` each of `batch_sizes` sequences of `context` tokens."""

    batch_sizes: list[int]
    context: int
    num_steps: int
    ceilings: Ceilings


@dataclass
class Session(Place):
    """What the parts share: the resolved arms, where they run and write, and who failed."""

    arms: dict[str, Arm]
    failures: list[str] = field(default_factory=list)
    written: dict[Path, None] = field(default_factory=dict)  # in this order

    @contextmanager
    def attempt(self, arm: str) -> Iterator[None]:
        """One arm's error does not stop the others; the memory it took is free again."""
        free(self.device)
        try:
            yield
        except Exception as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            self.fail(arm, describe_error(error))

    def fail(self, arm: str, message: str) -> None:
        line = f"{arm}: {message}"
        if line not in self.failures:
            self.failures.append(line)
            self.say(f"failed: {line}")

    def adopt(self, study: Study) -> None:
        """The failures of the arms that served."""
        for message, points in study.failures.items():
            for arm in dict.fromkeys(point.arm for point in points):
                self.fail(arm, message)

    @contextmanager
    def table(self, name: str) -> Iterator[GrowingTable]:
        with GrowingTable(self.output_dir / name) as table:
            yield table
        if table.rows:
            self.written[table.path] = None

    def write_json(self, name: str, record: dict[str, object]) -> None:
        with locked(self.output_dir):
            write_json(self.output_dir / name, record)
        self.written[self.output_dir / name] = None

    def load(self, arm: str) -> Decoder:
        return self.arms[arm].load_model(self.device)

    def conclude(self) -> None:
        """Name what was written; StudyError with every failure."""
        for path in self.written:
            self.say(f"wrote {path}")
        if self.failures:
            raise StudyError("\n".join(self.failures))

    def allocated_bytes(self) -> float:
        """By a GPU's allocator, of what something still refers to; NaN on a CPU."""
        if self.device.type != "cuda":
            return float("nan")
        free(self.device)
        return float(torch.cuda.memory_allocated(self.device))


def measure_models(session: Session, text: Text | None) -> pd.DataFrame:
    """One row per arm: bytes, `weight_error`, and with a `text` what framework.measure.quality.Comparison makes of it.

    Written to models.csv, and the errors of single matrices to weights.csv.
    """
    references: dict[str, Decoder] = {}  # at most one: arms mostly share it
    with session.table("models.csv") as models, session.table("weights.csv") as weights:
        for arm, components in session.arms.items():
            with session.attempt(arm), session.status(f"{arm}: model"):
                float32 = with_keywords(components.model, dtype="float32")
                key = digest_of(describe(float32))
                if key not in references:
                    references.clear()
                    free(session.device)
                    references[key] = float32(device=session.device)
                row, matrices = measure_model(session, arm, references[key], text)
                models.add([row])
                weights.add(matrices.assign(arm=arm).to_dict("records"))
    return models.table()


def measure_model(
    session: Session, arm: str, reference: Decoder, text: Text | None
) -> tuple[dict[str, object], pd.DataFrame]:
    """The arm's row, and the errors of its matrices."""
    before = session.allocated_bytes()
    loaded = session.load(arm)
    row: dict[str, object] = {"arm": arm, "dtype": str(loaded.norm.weight.dtype).removeprefix("torch.")}
    row |= footprint(loaded) | {"allocated": session.allocated_bytes() - before}
    matrices = weight_errors(loaded, reference)
    row["weight_error"] = block_error(matrices)
    if text is not None:
        token_ids = read_tokens(text.path, loaded, text.num_tokens)
        num_tokens = min(MAX_FORWARD_TOKENS, MAX_FORWARD_LOGITS // loaded.config.vocab_size)
        batch_size = max(1, num_tokens // text.window)
        name = describe(session.arms[arm].engine)["kv_dtype"]
        kv_dtype = None if name is None else getattr(torch, name)
        windows = {"window_len": text.window, "stride": text.window, "batch_size": batch_size}
        row |= compare_models(loaded, reference, token_ids, kv_dtype=kv_dtype, **windows).summary()
    return row, matrices


def within(arm: Arm, memory_bytes: int | None) -> Arm:
    """The arm with `memory_bytes` for weights and KV cache, if that is not None."""
    if memory_bytes is None:
        return arm
    keywords = {"memory_bytes": memory_bytes, "num_blocks": None, "kv_cache_bytes": None}
    return replace(arm, engine=with_keywords(arm.engine, **keywords))


def measure_engines(
    session: Session, memory_bytes: int | None, steps: Steps | None, prompt: Prompt | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per arm with its KV cache within `memory_bytes` and its `text`; one per arm and decode step.

    Written to engines.csv and decode.csv.
    """
    loaded: Decoder | None
    with session.table("decode.csv") as cases, session.table("engines.csv") as engines:
        for arm, components in session.arms.items():
            with session.attempt(arm):
                loaded = session.load(arm)
                found, text = measure_steps(session, arm, loaded, steps, prompt)
                cases.add(found)
                cache = measure_cache(session, components, memory_bytes, loaded)
                engines.add([{"arm": arm, **cache, "text": text}])
            loaded = None  # with its KV cache, before the next one comes
    return engines.table(), cases.table()


def measure_steps(
    session: Session, arm: str, loaded: Decoder, steps: Steps | None, prompt: Prompt | None
) -> tuple[list[dict[str, object]], str | None]:
    """Decode steps against their floors, and how the prompt goes on, by the arm's own engine."""
    components = session.arms[arm]
    rows: list[dict[str, object]] = []
    num_seats = max([*([] if steps is None else steps.batch_sizes), max_num_seqs_of(components.scheduler)])
    num_blocks = num_blocks_for(components.engine, num_seats, 2 * loaded.config.max_model_len)
    make = at_most(components.engine, num_blocks)
    engine = measured(make(model=loaded))
    if steps is not None:
        with session.status(f"{arm}: engine") as update:
            engine.on_progress = update
            get_ready(engine, num_seats)
        session.say(f"{arm}:")
        sizes = {"decode": [[batch_size, steps.context] for batch_size in steps.batch_sizes]}
        cases = measure_cases(sizes, engine, steps.num_steps, steps.ceilings, session.say)
        rows = [{"arm": arm, **case.row(steps.ceilings)} for case in cases]
    text = None if prompt is None else continue_text(engine, components, prompt)
    return rows, text


def continue_text(engine: MeasuredEngine, components: Arm, prompt: Prompt) -> str:
    tokenizer = load_tokenizer(engine.model.config)
    encoded = [list(tokenizer.encode(prompt.text))]
    requests = make_requests(encoded, prompt.num_output_tokens, engine.max_model_len, frozenset())
    sequences, _ = replay_trace(requests, make_scheduler(components.scheduler, engine), engine)
    return tokenizer.decode(sequences[0].output_token_ids)


def measure_cache(session: Session, components: Arm, memory_bytes: int | None, loaded: Decoder) -> dict[str, object]:
    """The blocks and bytes of the KV cache that the engine makes beside the weights; none, where these leave no room.

    Raises no error then: only an arm that serves needs one.
    """
    weight_bytes = footprint(loaded)["total"]
    if memory_bytes is not None and weight_bytes >= memory_bytes:
        return {
            "weight_bytes": weight_bytes,
            **dict.fromkeys(("num_blocks", "num_slots", "kv_bytes", "kv_allocated"), 0),
        }
    attach_cache(loaded, [])  # what an earlier engine left
    before = session.allocated_bytes()
    engine = within(components, memory_bytes).engine(model=loaded)
    return {
        "weight_bytes": weight_bytes,
        "num_blocks": engine.num_blocks,
        "num_slots": engine.num_blocks * engine.block_size,
        "kv_bytes": cache_footprint(loaded),
        "kv_allocated": session.allocated_bytes() - before,
    }
