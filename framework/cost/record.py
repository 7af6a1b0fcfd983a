"""Runs that were recorded: what their steps were and took, what came out, and the cost model that is fitted on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from framework.core import Batch, Request, StepResult
from framework.cost.features import Features, features_in
from framework.cost.fit import fit_kinds
from framework.cost.model import VERSION, Calibrated, CostModel, KindCost
from framework.cost.step_log import from_steps
from framework.cost.subject import Target
from framework.models.config import ModelConfig

Shape = tuple[int, ...]  # what a step is known by, as the columns of SHAPE
Outputs = dict[int, list[int]]  # request id → its tokens

SHAPE = (
    "num_prefill_tokens",
    "num_decode_tokens",
    "num_seqs",
    "num_context_tokens",
    "num_prefill_pairs",
    "num_adapter_loads",
    "num_swapped_out_blocks",
    "num_swapped_in_blocks",
)
TIMES = (
    "elapsed",
    "prepare",
    "device",
    "adapter_waits",
    "swap_wait",
    "schedule",
    "update",
    "launch",
)
NEEDED = {"requests.parquet": ("token_ids",), "steps.parquet": (*SHAPE, *TIMES, "server")}  # columns
REQUEST = ("request_id", "refused", "adapter_id", "session_id", "turn", "num_prompt_tokens", "token_ids")


def shape_of(batch: Batch) -> Shape:
    return (
        batch.num_prefill_tokens,
        batch.num_decode_tokens,
        len(batch.sequences),
        batch.num_context_tokens,
        batch.num_prefill_pairs,
        len(batch.adapter_loads),
        len(batch.swap_out),
        len(batch.swap_in),
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """One replay on disk, of the arm `arm`.

    Equal keys stand for configs that are equal but for model, engine and clock. The engine was `num_steps_ahead`;
    `sizes` are the rows that its graphs hold, of each kind of step. `rate` (1/s) None: as recorded, or of users.
    """

    folder: Path
    arm: str
    rate: float | None
    key: str
    num_steps_ahead: int
    sizes: dict[str, list[int]]

    def steps_of(self, server: int) -> Iterator[tuple[Shape, StepResult]]:
        """Every step that the server took, in order: its shape, and what it took, without tokens."""
        steps = pd.read_parquet(self.folder / "steps.parquet", columns=[*SHAPE, *TIMES, "server"])
        steps = steps[steps["server"] == server]
        shapes = zip(*(steps[name].tolist() for name in SHAPE), strict=True)
        times = zip(*(steps[name].tolist() for name in TIMES), strict=True)
        for shape, row in zip(shapes, times, strict=True):
            yield shape, result_of(dict(zip(TIMES, row, strict=True)))

    def log(self) -> pd.DataFrame:
        """The steps as `step_log` has them."""
        steps = pd.read_parquet(self.folder / "steps.parquet")
        parts = [from_steps(rows, self.num_steps_ahead) for _, rows in steps.groupby("server", sort=False)]
        return pd.concat(parts, ignore_index=True).assign(is_replayed=1)

    def outputs(self, requests: Iterable[Request]) -> Outputs | None:
        """The tokens of each of these requests; None if not all of them were served in this run."""
        table = pd.read_parquet(self.folder / "requests.parquet", columns=list(REQUEST))
        served = {row["request_id"]: row for row in table.to_dict("records")}
        if not all(is_same(request, served.get(request.request_id)) for request in requests):
            return None
        return {request.request_id: served[request.request_id]["token_ids"].tolist() for request in requests}


def result_of(row: dict[str, Any]) -> StepResult:
    """Without tokens."""
    waits = row["adapter_waits"]
    return StepResult(
        [],
        row["elapsed"],
        row["prepare"],
        row["device"],
        {} if waits is None else {int(slot): float(seconds) for slot, seconds in waits},
        row["swap_wait"],
        row["schedule"],
        row["update"],
        row["launch"],
    )


def is_same(request: Request, row: dict[str, Any] | None) -> bool:
    """Whether a row of `requests.parquet` is of this request, served to its end.

    The prompt of a turn that follows another has the length that the answers before gave it.
    """
    if row is None or row["refused"] is not None:
        return False
    tokens = row["token_ids"]
    is_whole = len(tokens) == request.num_output_tokens
    is_stopped = 0 < len(tokens) < request.num_output_tokens and int(tokens[-1]) in request.stop_token_ids
    has_prompt = request.think_time is not None or row["num_prompt_tokens"] == request.num_prompt_tokens
    names = (request.adapter_id, request.session_id, request.turn)
    return (is_whole or is_stopped) and has_prompt and names == (row["adapter_id"], row["session_id"], row["turn"])


class CostOfRecord(CostModel):
    """Of a step with prompts, its context tokens are those of earlier steps: its own are as many as its rows.

    A record may have nothing but whole prompts, which do not tell the two apart.
    """

    def computed(self, kind: str, features: Features) -> Features:
        if kind == "prompt":
            num_earlier = max(features.num_context_tokens - features.num_rows, 0)
            features = features._replace(num_context_tokens=num_earlier)
        return super().computed(kind, features)


def fit_record(log: pd.DataFrame, sizes: dict[str, list[int]]) -> dict[str, KindCost]:
    """As CostOfRecord has them; where no prompt reads earlier tokens, they cost what they cost steps of decodes."""
    num_own = (log["num_prefill_tokens"] + log["num_decode_tokens"]).where(log["num_prefill_tokens"] > 0, 0)
    log = log.assign(num_context_tokens=(log["num_context_tokens"] - num_own).clip(lower=0))
    kinds = fit_kinds(log, sizes, is_planned=False)
    prompt = kinds.get("prompt")
    if prompt is not None and "decode" in kinds and not prompt.ranges["num_context_tokens"][1]:
        kinds["prompt"] = replace(prompt, context=kinds["decode"].context)
    return kinds


@dataclass(frozen=True, kw_only=True)
class Record:
    """Runs of one engine: what RecordedEngine is told instead of a model.

    `target` is the model that it stands for, `engine` what the engine was, with its KV cache. `refused` are adapters
    that could not be served, with the reasons. `sha256` stands for the content of all of it.
    """

    name: str
    device: str
    git_commit: str | None
    is_older: bool  # the source that computes steps has changed since
    target: Target
    engine: Calibrated
    num_recorded_slots: int
    num_recorded_bytes: int  # of these
    blocks_per_adapter: int
    num_swap_blocks: int
    refused: dict[str, str]
    runs: list[Run]
    sha256: str

    @property
    def config(self) -> ModelConfig:
        return self.target.config

    @property
    def num_adapter_slots(self) -> int:
        """Where adapters lie in KV blocks, as many as there was room for."""
        return self.num_recorded_slots if self.blocks_per_adapter else self.target.num_adapter_slots

    @property
    def num_adapter_bytes(self) -> int:
        """With as many slots as recorded that of the record, else as much for each."""
        if self.num_adapter_slots == self.num_recorded_slots:
            return self.num_recorded_bytes
        return self.engine.slot_bytes * (self.num_adapter_slots + 1)

    def run_of(self, key: str, arm: str) -> Run | None:
        """The run with this key: that of the arm, or else of another; ValueError where there are several others."""
        found = [run for run in self.runs if run.key == key]
        own = [run for run in found if run.arm == arm]
        if len(own or found) > 1:
            arms = ", ".join(run.arm for run in found)
            raise ValueError(f"engine.points={self.name} has such a replay of {arms}: choose one with engine.arm")
        return next(iter(own or found), None)

    def outputs(self, requests: list[Request]) -> Outputs | None:
        """The tokens of these requests, from the first run that has all of them."""
        return next((outputs for run in self.runs if (outputs := run.outputs(requests)) is not None), None)

    @cached_property
    def _log(self) -> pd.DataFrame:
        return pd.concat([run.log() for run in self.runs], ignore_index=True)

    @cached_property
    def cost(self) -> CostModel:
        """Fitted on all steps, at the first use."""
        kinds = {kind for run in self.runs for kind in run.sizes}
        sizes = {kind: sorted({size for run in self.runs for size in run.sizes.get(kind, [])}) for kind in kinds}
        return CostOfRecord(
            version=VERSION,
            name=f"of {self.name}",
            device=self.device,
            subject=self.target.subject,
            engine=self.engine,
            kinds=fit_record(self._log, sizes),
            sizes=sizes,
            error={},
            environment={"git_commit": self.git_commit},
            compute_version="",
        )

    @cached_property
    def seen(self) -> set[tuple[Any, ...]]:
        """Kind and features of every step."""
        return set(features_in(self._log).itertuples(index=False, name=None))
