"""Calls over a connection, and how far its other end's clock is."""

from multiprocessing import Pipe
from threading import Thread

import pytest

from framework.placement import messages
from framework.placement.messages import Value, WorkerDied, call, measure_offset, value_of


def test_the_quickest_reading_counts(monkeypatch):
    """By the driver's clock from 0 to 4 s, and from 10 to 11 s: in the middle of that the other one says 191 s."""
    here, there = Pipe()
    for reading in (50.0, 191.0):
        there.send(Value(reading))
    monkeypatch.setattr(messages, "NUM_READINGS", 2)
    monkeypatch.setattr("time.perf_counter", iter([0.0, 4.0, 10.0, 11.0]).__next__)
    offset = measure_offset(here)
    assert (offset.seconds, offset.round_trip) == (191.0 - 10.5, 1.0)


def test_a_connection_that_ends_is_a_death():
    here, there = Pipe()
    Thread(target=there.close).start()
    with pytest.raises(WorkerDied):
        value_of(here)
    with pytest.raises(WorkerDied):
        call(here, len)
