"""What is charged: from the start of a step's schedule, and every moment while a step is in flight."""

import gc
from collections import deque

from framework.core import StepResult
from framework.stopwatch import NoStopwatch, Stopwatch, garbage_collector_paused, make_watch
from tests.fake_engine import FakeEngine

IN_FLIGHT = deque(["a step"])
RESULT = StepResult([1], elapsed=9.0)


def watch_at(*times):
    ticks = iter(times)
    return Stopwatch(lambda: next(ticks))


def test_idle_time_is_not_charged():
    watch = watch_at(0.0, 5.0, 5.25, 6.0)
    watch.start(deque())  # at 5 s: nothing is in flight
    assert watch.lap() == 0.25  # the schedule
    assert watch.elapsed(RESULT) == 1.0  # schedule and step


def test_while_a_step_is_in_flight_every_moment_is_charged_once():
    watch = watch_at(0.0, 1.0, 2.0, 2.5, 3.0, 3.25, 4.5)
    watch.start(deque())  # at 1 s
    assert watch.elapsed(RESULT) == 1.0  # the first step's tokens at 2 s
    watch.start(IN_FLIGHT)  # at 2.5 s, the second step runs
    assert watch.lap() == 0.5
    assert watch.lap() == 0.25
    assert watch.elapsed(RESULT) == 2.5  # until 4.5 s, since the tokens before


def test_a_lap_begins_where_the_charge_ended():
    watch = watch_at(0.0, 1.0, 2.0, 2.125)
    watch.start(deque())
    watch.elapsed(RESULT)
    assert watch.lap() == 0.125  # the update


def test_what_is_left_out_is_not_charged_but_as_far_as_the_device_needed_the_time():
    for device, charged in ((0.5, 2.0), (2.75, 2.75), (9.0, 3.0)):
        watch = watch_at(0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
        watch.start(deque())  # at 1 s
        watch.leave_out(lambda: None)  # from 2 to 3 s
        assert watch.elapsed(StepResult([1], elapsed=0.0, device=device)) == charged  # of the 3 s until 4 s
        assert watch.elapsed(RESULT) == 1.0  # until 5 s: nothing of it was left out


def test_an_engine_that_measures_nothing_says_itself_what_a_step_takes():
    engine = FakeEngine()
    watch = make_watch(engine)
    assert isinstance(watch, NoStopwatch)
    watch.start(IN_FLIGHT)
    assert (watch.lap(), watch.elapsed(RESULT)) == (0.0, 9.0)
    engine.timer = iter([1.0, 3.0, 4.0]).__next__
    watch = make_watch(engine)
    watch.start(deque())
    assert watch.elapsed(RESULT) == 1.0


def test_no_garbage_is_collected_meanwhile_and_afterwards_as_before():
    with garbage_collector_paused():
        assert not gc.isenabled()
        with garbage_collector_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
