"""What a cost model predicts of one step after the other: drawn by a seed, and counted where it is outside."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, NamedTuple

import numpy as np

from framework.core import Batch, StepResult
from framework.cost.features import Features, awaited_slots, features_of, kind_of
from framework.cost.load import Load
from framework.cost.model import WITHIN, CostModel, Outside, Values
from framework.cost.noise import Noise

Seen = Set[tuple[Any, ...]]  # kind and features of steps


class Ahead(NamedTuple):
    """Decode steps to come, in seconds, (num_steps,) each: as in StepResult, `alone` whatever the next one takes."""

    alone: Values
    prepare: Values
    device: Values


class Prediction:
    """The steps of one replay. With `noise` each draws how much longer or shorter it takes; else all take the mean.

    Those whose kind and features are in `seen` are counted in `num_seen`, and never as outside.
    """

    def __init__(
        self, cost: CostModel, *, has_adapters: bool, noise: bool, seed: int, seen: Seen = frozenset()
    ) -> None:
        self.cost, self.has_adapters, self.seen = cost, has_adapters, seen
        self.outside, self.num_seen = Outside(), 0
        self.noise = Noise(cost.kinds, seed if noise else None)
        self._first: tuple[StepResult, float] | None = None  # of the last step that none was before: its host's work
        self._repeated: Features | None = None  # of the step that those are like that were looked at last
        self._alone: Values = np.zeros(0)  # seconds of these
        self._load = Load()

    def step(self, batch: Batch, num_steps_ahead: int, before: StepResult | None) -> StepResult:
        """Without tokens; `before` is the last step in flight."""
        kind = kind_of(batch)
        cost, outside = self.cost.of_kind(kind), self.outside
        covered = 0.0 if before is None else before.device
        awaited = awaited_slots(batch, self.cost.engine.are_loads_beside)
        is_first = num_steps_ahead > 0 and before is None
        known = features_of(batch, is_first, self.has_adapters, len(awaited))
        features = self.cost.computed(kind, known)
        outside.num_steps += 1
        if self.seen and (kind, *known) in self.seen:
            self.num_seen += 1
        else:
            outside.note(kind, *cost.distance(features))
        if kind == "prompt":
            features = features._replace(loaded_rows=known.num_rows * self._load.rate)
        seconds = cost.seconds(features)
        ratio = self.noise.take(kind)
        device, host = ratio * seconds.device, ratio * seconds.host
        if before is not None:
            # Its tokens are waited for once this one is launched
            before.elapsed = max(before.elapsed, self.host_of_first(before) + host)
        result = StepResult([], device + ratio * seconds.beside, prepare=host, device=device)
        if kind == "prompt":
            self._load.prompt(batch.num_prefill_tokens, result.elapsed)
        else:
            self._load.decode(result.elapsed)
        if is_first:
            self._first = result, host
        if awaited:
            wait = ratio * cost.seconds_for("num_adapter_loads", features, covered)
            result.adapter_waits = dict.fromkeys(awaited, wait)
        if features.num_copied_blocks:
            result.swap_wait = ratio * cost.seconds_for("num_copied_blocks", features, covered)
        return result

    def host_of_first(self, result: StepResult) -> float:
        """Seconds of the host's work that are part of this step's, since none was in flight before it; else 0."""
        return self._first[1] if self._first is not None and self._first[0] is result else 0.0

    def ahead(self, newest: Batch, num_steps: int) -> Ahead:
        """The decode steps that repeat the newest in flight, each one token further; none of them is taken.

        They may be fewer than `num_steps`, but one at least.
        """
        ratios = self.noise.ahead("decode", num_steps)
        cost = self.cost.kinds["decode"]
        self._repeated = features = self.cost.computed("decode", features_of(newest, False, self.has_adapters, 0))
        index: Any = np.arange(1, len(ratios) + 1)
        seconds = cost.seconds(further_on(features, index))
        device = ratios * seconds.device
        self._alone = device + ratios * seconds.beside
        return Ahead(self._alone, ratios * seconds.host, device)

    def skip(self, num_steps: int) -> None:
        """Take so many of the steps that were looked at last."""
        assert not self.seen
        assert self._repeated is not None
        cost, outside = self.cost.kinds["decode"], self.outside
        self.noise.skip(num_steps)
        self._load.decodes(self._alone[:num_steps].tolist())
        outside.num_steps += num_steps
        features = self._repeated
        if cost.distance(further_on(features, num_steps))[0] > WITHIN:
            for index in range(1, num_steps + 1):
                outside.note("decode", *cost.distance(further_on(features, index)))


def further_on(features: Features, num_steps: int) -> Features:
    """Of the same decode step once every sequence is so many tokens longer."""
    return features._replace(
        num_context_tokens=features.num_context_tokens + num_steps * features.num_seqs,
        max_context_tokens=features.max_context_tokens + num_steps,
    )
