"""Skip-join multi-level feedback queue (FastServe, 2023): who has run long sinks, without knowing how long it will run.

Time is counted in decode steps, since a scheduler does not know how long its steps take.
"""

from itertools import count
from math import inf
from typing import Any

from framework.checks import positive, whole
from framework.core import Sequence
from framework.scheduler.orders.ranked import Ranked


class SkipJoin(Ranked):
    """Level 0 comes first; on a level, who came to it first. Who has used up the level's quantum goes one level down.

    The quantum of a level is `ratio` times that of the one above it, and that of level 0 `quantum` decode steps. The
    lowest of `num_levels` has no end. A prompt takes as long as one decode step, and one more per
    `prompt_tokens_per_step` of its tokens: it joins the first level whose quantum that fits into. Who has waited
    `max_wait` seconds (None: for ever) begins on level 0 again. What is computed again is not counted.
    """

    def __init__(
        self,
        *,
        num_levels: int,
        quantum: float,
        ratio: float,
        prompt_tokens_per_step: int,
        max_wait: float | None,
    ) -> None:
        super().__init__(self.level_of, preempts=True, max_wait=max_wait)
        if positive("order.ratio", ratio) < 1:
            raise ValueError(f"order.ratio must be at least 1, not {ratio}")
        whole("order.num_levels", num_levels)
        self.quanta = [positive("order.quantum", quantum) * ratio**level for level in range(num_levels - 1)] + [inf]
        self.prompt_tokens_per_step = whole("order.prompt_tokens_per_step", prompt_tokens_per_step)
        self.levels: dict[Sequence, tuple[int, int]] = {}  # and a stamp of when it came to the level
        self.limits: dict[Sequence, float] = {}  # output tokens with which it leaves its level
        self.stamps = count()

    def level_of(self, sequence: Sequence) -> Any:
        return self.levels[sequence]

    def append(self, sequence: Sequence) -> None:
        self.join(sequence)
        super().append(sequence)

    def join(self, sequence: Sequence) -> None:
        num_steps = 1 + sequence.request.num_prompt_tokens / self.prompt_tokens_per_step
        level = next(level for level, quantum in enumerate(self.quanta) if num_steps <= quantum)
        self._join(sequence, level, 1 - num_steps)

    def remove(self, sequence: Sequence) -> None:
        super().remove(sequence)
        self._forget(sequence)

    def served(self, sequences: list[Sequence], num_tokens: int = 1) -> None:
        limits = self.limits
        for num_later in range(num_tokens - 1, -1, -1):  # who sinks in an earlier step comes to the level first
            for sequence in sequences:
                if sequence.is_finished:
                    self._forget(sequence)
                    continue
                while len(sequence.output_token_ids) - num_later >= limits[sequence]:
                    self._join(sequence, self.levels[sequence][0] + 1, limits[sequence])
                    if sequence in self.entries:  # it was preempted while the step was in flight
                        self.place(sequence)

    def promote(self, sequence: Sequence) -> None:
        self._join(sequence, 0, len(sequence.output_token_ids))
        self.place(sequence)

    def _join(self, sequence: Sequence, level: int, num_tokens: float) -> None:
        """With the whole quantum of the level, from its `num_tokens`-th output token on."""
        self.levels[sequence] = level, next(self.stamps)
        self.limits[sequence] = num_tokens + self.quanta[level]
        self.unbeaten_by = None  # it ranks otherwise now

    def _forget(self, sequence: Sequence) -> None:
        self.levels.pop(sequence, None)
        self.limits.pop(sequence, None)
