"""First come, first served; who was preempted comes before all others."""

from collections import deque

from framework.core import Order, Sequence


class FirstCome(deque[Sequence], Order):
    """A plain queue."""

    def __init__(self) -> None:
        super().__init__()
