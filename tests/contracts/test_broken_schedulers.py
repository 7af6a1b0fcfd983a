"""A scheduler that breaks its contract ends the replay with an error that names the request."""

import pytest

from framework.core import Batch, Sequence
from framework.scheduler.continuous import ContinuousScheduler
from tests.fake_engine import requests_at
from tests.scheduler.event_logs import run


class Lazy(ContinuousScheduler):
    """Forgets to schedule."""

    def schedule(self, now: float) -> Batch | None:
        return None


class Oversleeping(Lazy):
    """Wants to be woken at a time that has passed."""

    wake_time = 0.5


class Thrashing(ContinuousScheduler):
    """Schedules nothing of a sequence, for ever."""

    def schedule(self, now: float) -> Batch | None:
        return Batch([Sequence(requests_at((0.0, 4, 4))[0])], [0], [0], 0, 0)


def test_a_stalled_scheduler_is_an_error_that_names_the_request():
    with pytest.raises(RuntimeError, match="unfinished requests: 2; request 0 is at server 0"):
        run(requests_at((0.0, 4, 4), (1.0, 4, 4)), Lazy)


class Forgetful(ContinuousScheduler):
    """Loses every second request."""

    def add(self, sequence: Sequence) -> None:
        if sequence.request.request_id % 2 == 0:
            super().add(sequence)


class Hollow(ContinuousScheduler):
    """Schedules nobody."""

    def schedule(self, now: float) -> Batch | None:
        return Batch([], [], [], 0, 0)


def test_a_lost_request_is_named():
    with pytest.raises(RuntimeError, match="request 1 is lost"):
        run(requests_at((0.0, 4, 4), (1.0, 4, 4)), Forgetful)


def test_an_empty_batch_is_an_error():
    with pytest.raises(RuntimeError, match=r"its batch at .* is empty"):
        run(requests_at((0.0, 4, 4)), Hollow)


def test_a_wake_time_that_has_passed_is_an_error():
    with pytest.raises(RuntimeError, match=r"stalled at 0\.5"):
        run(requests_at((0.0, 4, 4)), Oversleeping)


def test_a_scheduler_without_progress_is_an_error_that_names_the_request():
    with pytest.raises(RuntimeError, match="no progress on request 0"):
        run(requests_at((0.0, 4, 4)), Thrashing)


class Circling(ContinuousScheduler):
    """Computes the first token of a prompt again and again."""

    def schedule(self, now: float) -> Batch | None:
        sequence = Sequence(requests_at((0.0, 4, 4))[0])
        sequence.block_table = [0]
        return Batch([sequence], [0], [1], 1, 0)


def test_a_scheduler_that_goes_in_circles_is_an_error(monkeypatch):
    monkeypatch.setattr("framework.loops.MAX_STEPS_WITHOUT_TOKEN", 7)
    with pytest.raises(RuntimeError, match=r"no progress on request 0: 8 steps without a token, the last of 1 prompt"):
        run(requests_at((0.0, 4, 4)), Circling)
