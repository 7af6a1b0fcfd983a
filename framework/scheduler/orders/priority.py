"""The lowest number of the trace's `priority` first, as vLLM has it."""

from framework.contracts import Order
from framework.scheduler.orders.ranked import Ranked


def priority(*, preempts: bool, max_wait: float | None) -> Order:
    """By `priority`; see Ranked for `preempts` and `max_wait` (s). vLLM's V1 preempts for memory only."""
    return Ranked(lambda one: one.request.priority, preempts=preempts, max_wait=max_wait, uses=("priority",))
