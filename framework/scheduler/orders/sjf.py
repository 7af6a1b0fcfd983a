"""Shortest job first: by the length of the output, known or predicted (learning to rank, NeurIPS 2024)."""

from framework.contracts import Order
from framework.scheduler.orders.lengths import PREDICTED, output_length
from framework.scheduler.orders.ranked import Ranked


def sjf(*, predicted: bool, max_wait: float | None) -> Order:
    """Who is admitted runs on. `predicted`: by the trace's `num_predicted_tokens`; see Ranked for `max_wait` (s).

    The source's guard counts steps where this one counts seconds, and lets who has waited too long come first for a
    quantum, not to its end.
    """
    return Ranked(
        lambda one: output_length(one.request, predicted), max_wait=max_wait, uses=PREDICTED if predicted else ()
    )
