"""Keeps a GPU busy while the host launches a step, as the step before would do in a real overlap.

On an idle device a step waits for the host between its first kernels, or between all of them; behind another step it
does not, and takes the device less time.
"""

from __future__ import annotations

import torch

from framework.engine.torch_engine.in_flight import record_event

CYCLES = 2_000_000  # about a millisecond, of which the speed is measured
SHARE = 0.9  # of the time for which the device would be busy: it may count slower than when that was measured
LAUNCHES = 2.0  # no longer than so many of the last launch of such a step


class Hold:
    """Counts cycles on the device, `rate` of them a second."""

    def __init__(self) -> None:
        self.rate = 0.0
        self.launch_seconds: dict[str, float] = {}  # that the host took for the last step of each phase

    def measure(self) -> None:
        """How fast the device counts now; the first count lets it speed up."""
        for _ in range(5):
            start = record_event()
            torch.cuda._sleep(CYCLES)
            end = record_event()
            end.synchronize()
        self.rate = CYCLES / (1e-3 * start.elapsed_time(end))

    def seconds(self, phase: str, busy: float) -> float:
        """For how long before a step of this phase, if the device would be `busy` for so many seconds from now on."""
        return max(0.0, min(SHARE * busy, LAUNCHES * self.launch_seconds.get(phase, 0.0)))

    def begin(self, phase: str, busy: float) -> None:
        """Let the device count before it begins what is launched next; the host does not wait."""
        cycles = int(self.rate * self.seconds(phase, busy))
        if cycles:
            torch.cuda._sleep(cycles)
