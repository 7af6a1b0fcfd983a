"""First come, first served; who was preempted comes before all others."""

from collections import deque

from framework.contracts import Order
from framework.core import Sequence


class FirstCome(deque[Sequence], Order):
    """A plain queue."""

    def __init__(self) -> None:
        super().__init__()
