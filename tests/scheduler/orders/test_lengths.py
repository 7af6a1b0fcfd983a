"""The length of an output as an order is told it."""

import pytest

from framework.core import Request
from framework.scheduler.orders.lengths import output_length


def test_it_is_the_known_or_the_predicted_one():
    request = Request(7, 0.0, 4, 9, num_predicted_tokens=3)
    assert [output_length(request, predicted) for predicted in (False, True)] == [9, 3]


def test_a_trace_without_predictions_is_refused():
    with pytest.raises(ValueError, match=r"needs num_predicted_tokens, which request 7 does not have"):
        output_length(Request(7, 0.0, 4, 9), predicted=True)
