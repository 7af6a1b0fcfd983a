"""What a cost model predicts of one step after the other: drawn by a seed, and counted where it is outside."""

from __future__ import annotations

import random
from collections.abc import Set
from typing import Any

from framework.core import Batch, StepResult
from framework.cost.features import awaited_slots, features_of, kind_of
from framework.cost.model import CostModel, Outside

Seen = Set[tuple[Any, ...]]  # kind and features of steps


class Prediction:
    """The steps of one replay. With `noise` each draws how much longer or shorter it takes; else all take the mean.

    Those whose kind and features are in `seen` are counted in `num_seen`, and never as outside.
    """

    def __init__(
        self, cost: CostModel, *, has_adapters: bool, noise: bool, seed: int, seen: Seen = frozenset()
    ) -> None:
        self.cost, self.has_adapters, self.noise, self.seen = cost, has_adapters, noise, seen
        self.outside, self.num_seen = Outside(), 0
        self._draw = random.Random(seed).random

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
        seconds = cost.seconds(features)
        ratio = cost.ratio_at(self._draw()) if self.noise else cost.mean_ratio
        device, host = ratio * seconds.device, ratio * seconds.host
        if before is not None:
            before.elapsed = max(before.elapsed, host)  # its tokens are waited for once this one is launched
        result = StepResult([], device + ratio * seconds.beside, prepare=host, device=device)
        if awaited:
            wait = ratio * cost.seconds_for("num_adapter_loads", features, covered)
            result.adapter_waits = dict.fromkeys(awaited, wait)
        if features.num_copied_blocks:
            result.swap_wait = ratio * cost.seconds_for("num_copied_blocks", features, covered)
        return result
