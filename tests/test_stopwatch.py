"""What is charged: from the start of a step's schedule, and every moment while a step is in flight."""

import gc
from collections import deque

import pytest

from framework.core import StepResult
from framework.stopwatch import NoStopwatch, ServerClock, Stopwatch, Turns, garbage_collector_paused, make_watch
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


class Host:
    """A clock that a test sets forward."""

    def __init__(self):
        self.now = 100.0

    def work(self, seconds):
        self.now += seconds


def test_a_clock_stands_still_while_another_server_works():
    host = Host()
    turns = Turns(lambda: host.now)
    one, other = ServerClock(turns), ServerClock(turns)
    start = one()
    for first, second in ((1.0, 5.0), (2.0, 7.0)):
        one()
        host.work(first)
        one()
        other_start = other()
        host.work(second)
        assert other() - other_start == second
    turns.end()
    host.work(30.0)  # nobody's
    assert one() - start == 3.0
    host.work(0.5)
    assert one() - start == 3.5
    one.leave_out(lambda: host.work(20.0))
    assert one() - start == 3.5


def tokens_at(device, prepare, update, num_steps=4, other=None):
    """When each step's tokens are there, of a server that launches a step before it takes the tokens of the one before.

    Each step runs alone for `device` seconds; an `other` server works between.
    """
    host = Host()
    turns = Turns(lambda: host.now)
    clock = ServerClock(turns)
    start, ends, tokens = clock(), [], []

    def finish():
        host.work(device)
        return device

    for step in range(num_steps):
        host.work(prepare)
        ends.append(clock.run_alone(finish))
        if step:
            clock.go_on_to(ends[step - 1])
            tokens.append(clock() - start)
            if other is not None:
                ServerClock(turns)()
                host.work(other)
                clock()
            host.work(update)
    return tokens


@pytest.mark.parametrize("other", [None, 50.0])
def test_a_step_that_ran_alone_counts_as_beside_the_hosts_work(other):
    """As by hand: the device goes from step to step, or waits for the host where that is slower."""
    assert tokens_at(device=10.0, prepare=3.0, update=1.0, other=other) == [13.0, 23.0, 33.0]
    assert tokens_at(device=10.0, prepare=12.0, update=1.0, other=other) == [24.0, 37.0, 50.0]
    assert tokens_at(device=10.0, prepare=9.0, update=1.0, other=other) == [19.0, 29.0, 39.0]


def test_no_garbage_is_collected_meanwhile_and_afterwards_as_before():
    with garbage_collector_paused():
        assert not gc.isenabled()
        with garbage_collector_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
