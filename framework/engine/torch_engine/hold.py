"""Keeps a GPU busy while the host launches a step, as the step before would do in a real overlap.

On an idle device a step waits for the host between its first kernels, or between all of them; behind another step it
does not, and takes the device less time. And a device that rests runs faster than one that is near its power limit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from framework.kernels.reading import read_for

SHARE = 0.9  # of the time for which the device would be busy: it may take less than was measured before
LAUNCHES = 2.0  # no longer than so many of the last launch of such a step


class Hold:
    """Reads `source`, flat int32 numbers, on the device."""

    def __init__(self, source: Tensor) -> None:
        self.source = source
        self.launch_seconds: dict[str, float] = {}  # that the host took for the last step of each phase
        read_for(0.0, source)  # compiled before anything is timed

    def seconds(self, phase: str, busy: float) -> float:
        """For how long before a step of this phase, if the device would be `busy` for so many seconds from now on."""
        return max(0.0, min(SHARE * busy, LAUNCHES * self.launch_seconds.get(phase, 0.0)))

    def begin(self, phase: str, busy: float) -> None:
        """Let the device read before it begins what is launched next; the host does not wait."""
        seconds = self.seconds(phase, busy)
        if seconds:
            read_for(seconds, self.source)


def largest_weights(model: nn.Module) -> Tensor:
    """Those of the largest tensor that is contiguous, as flat int32 numbers (what is left over is left out)."""
    tensors = [weights.detach() for weights in model.parameters() if weights.is_contiguous()]
    largest = max(tensors, key=lambda weights: weights.nbytes).view(-1).view(torch.uint8)
    return largest[: len(largest) // 4 * 4].view(torch.int32)
