"""Shortest remaining processing time: who has the fewest output tokens to come runs, and others give way."""

from framework.contracts import Order
from framework.core import Sequence
from framework.scheduler.orders.lengths import PREDICTED, output_length
from framework.scheduler.orders.ranked import Ranked


def srpt(*, predicted: bool, max_wait: float | None) -> Order:
    """By the known or the `predicted` length of the output, less what is in steps already; see Ranked for `max_wait`.

    An output that is longer than predicted has nothing left to come. Prompts count nothing.
    """

    def num_remaining(sequence: Sequence) -> int:
        if not predicted:
            return sequence.num_unscheduled_tokens
        request = sequence.request
        num_scheduled = request.num_output_tokens - sequence.num_unscheduled_tokens
        return max(output_length(request, predicted) - num_scheduled, 0)

    return Ranked(num_remaining, preempts=True, max_wait=max_wait, uses=PREDICTED if predicted else ())
