"""What is captured has run before, and nothing is collected meanwhile."""

import gc
from contextlib import contextmanager

import torch

from framework.engine.torch_engine import graphs


def test_garbage_waits_until_everything_is_captured():
    gc.enable()
    with graphs.capturing():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_is_captured_has_run_once_before(monkeypatch):
    log = []

    @contextmanager
    def record(graph, pool):
        log.append(("capture", pool))
        yield

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", record)
    _, result = graphs.capture(lambda: log.append("run") or len(log), pool=7)
    assert log == ["run", "synchronize", ("capture", 7), "run"]
    assert result == 4
