"""Processes as workers: what they raise, what they see, and that they end with their driver."""

import os
import time
from pathlib import Path

import pytest

from framework.placement.workers import VISIBLE, check_gpus, gpu_visible, when_ready
from tests.fake_engine import FakeEngine
from tests.placement.engines import in_threads, not_buildable, spawned


def process_id(worker) -> int:
    return os.getpid()


def die(worker) -> None:
    os._exit(9)


def refuse(worker, reason: str) -> None:
    raise KeyError(reason)


def test_each_is_a_process_which_may_die_alone_and_ends_with_its_connection():
    workers = spawned(FakeEngine)
    processes = workers.ask_all(process_id)
    assert len({os.getpid(), *processes}) == 3
    assert workers.ask(1, process_id) == processes[1]
    with pytest.raises(RuntimeError, match="KeyError: 'no such'"):
        workers.ask(0, refuse, "no such")
    with pytest.raises(RuntimeError, match="the worker of server 1 died"):
        workers.ask(1, die)
    assert workers.ask(0, process_id) == processes[0]
    workers.close()
    deadline = time.monotonic() + 20
    while any(map(is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_running, processes))


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_an_engine_that_cannot_be_built_is_the_drivers_error():
    with pytest.raises(ValueError, match=r"model\.path is no model"):
        when_ready(in_threads(not_buildable))


@pytest.mark.parametrize(("before", "seen"), [(None, "1"), ("4,GPU-7", "GPU-7")])
def test_a_worker_sees_one_of_the_gpus_that_its_driver_sees(monkeypatch, before, seen):
    monkeypatch.delenv(VISIBLE, raising=False)
    if before is not None:
        monkeypatch.setenv(VISIBLE, before)
    with gpu_visible(1):
        assert os.environ[VISIBLE] == seen
    assert os.environ.get(VISIBLE) == before


def test_more_servers_than_gpus_are_refused():
    check_gpus(2, 2, "this machine")
    with pytest.raises(ValueError, match="3 servers with a GPU each need 3 GPUs, and this machine has 2; device=cpu"):
        check_gpus(3, 2, "this machine")
