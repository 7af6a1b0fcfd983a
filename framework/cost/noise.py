"""What steps take over what a cost model's terms say, drawn by seed: one quantile for each step, whatever its kind."""

import random

import numpy as np

from framework.cost.model import KindCost, Values

NUM_DRAWN = 1024  # quantiles at once


class Noise:
    """The ratios of the steps to come, in their order; with `seed` None each is its kind's mean."""

    def __init__(self, kinds: dict[str, KindCost], seed: int | None) -> None:
        self.kinds = kinds
        self._draw = None if seed is None else random.Random(seed).random
        self._refill()

    def take(self, kind: str) -> float:
        """Of the next step."""
        if self._next == NUM_DRAWN:
            self._refill()
        self._next += 1
        return self._single[kind][self._next - 1]

    def ahead(self, kind: str, num_steps: int) -> Values:
        """Of the next steps if they are of this kind: (num_steps,), or fewer; at least one. None of them is taken."""
        if self._next == NUM_DRAWN:
            self._refill()
        return self._ratios[kind][self._next : self._next + num_steps]

    def skip(self, num_steps: int) -> None:
        """The next steps, of those that were looked at ahead, are taken."""
        self._next += num_steps

    def _refill(self) -> None:
        self._next = 0
        if self._draw is None:
            self._ratios = {kind: np.full(NUM_DRAWN, cost.mean_ratio) for kind, cost in self.kinds.items()}
        else:
            quantiles = np.array([self._draw() for _ in range(NUM_DRAWN)])
            self._ratios = {kind: cost.ratios_at(quantiles) for kind, cost in self.kinds.items()}
        self._single = {kind: ratios.tolist() for kind, ratios in self._ratios.items()}
