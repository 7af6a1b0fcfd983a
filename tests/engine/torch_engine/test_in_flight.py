"""What a step in flight waited for."""

from framework.engine.torch_engine import in_flight


def test_what_passed_beside_the_step_before_was_not_waited_for():
    loading = in_flight.Waited({1, 2}, host=0.5)
    waits = [loading.waits(*passed) for passed in ((0.0, 1.0), (0.25, 1.0), (2.0, 1.0), (0.25, 0.125))]
    assert waits == [{1: seconds, 2: seconds} for seconds in (0.5, 0.25, 0.0, 0.125)]
