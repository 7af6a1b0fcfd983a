"""Keeps a GPU busy where, in the system that is emulated, the step before would keep it busy.

On an idle device a step waits for the host between its first kernels, or between all of them; behind another step it
does not, and takes the device less time. And a device that rests runs faster than one that is near its power limit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from framework.kernels.filling import TILE, fill

MAX_GAP = 0.05  # s, between a step's end and the next launch
MAX_LAUNCH = 1.0  # s; from 2.1 s on the kernel would be compiled again, for nanoseconds of 8 bytes
LATENCY = 1e-4  # s, in which the device leaves what it was kept busy with, and begins and leaves the next


class Filler:
    """Multiplies `weights`, flat bfloat16 numbers, on the device."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        self.ticket = 0  # of what was begun last
        self.released = torch.zeros(1, dtype=torch.int64, pin_memory=weights.is_cuda)  # the last that has ended
        self._released_on_device = torch.zeros(1, dtype=torch.int64, device=weights.device)
        self._released = self.released.numpy()  # the same memory: the host writes it sooner so
        self.begin(0.0)  # compiled before anything is timed

    def begin(self, seconds: float = MAX_GAP) -> None:
        """Go on until `end`, or for so many seconds, once the device is done with all that was launched."""
        self.end()
        self.ticket += 1
        fill(self.weights, min(seconds, MAX_LAUNCH), self.ticket, self.released, self._released_on_device)

    def end(self) -> None:
        """Give the device to what is launched next, some µs from now; the host does not wait."""
        self._released[0] = self.ticket


def largest_weights(model: nn.Module) -> Tensor:
    """The bytes of the largest tensor that is contiguous as flat bfloat16 numbers, repeated if they are too few."""
    tensors = [weights.detach() for weights in model.parameters() if weights.is_contiguous()]
    largest = max(tensors, key=lambda weights: weights.nbytes).view(-1).view(torch.uint8)
    numbers = largest[: len(largest) // 2 * 2].view(torch.bfloat16)
    return numbers if len(numbers) >= TILE else numbers.repeat(-(-TILE // len(numbers)))
