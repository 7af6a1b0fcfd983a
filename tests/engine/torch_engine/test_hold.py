"""How long a device is kept busy before a step."""

import time

import pytest
import torch

from framework.engine.torch_engine.hold import Hold


@pytest.fixture
def counted(monkeypatch):
    cycles = []
    monkeypatch.setattr(torch.cuda, "_sleep", cycles.append)
    return cycles


def test_a_device_is_held_for_a_launch_or_as_long_as_it_would_be_busy(counted):
    hold = Hold()
    hold.rate = 1e9
    hold.launch_seconds["decode"] = 0.001
    for phase, busy in [("decode", 1.0), ("decode", 0.001), ("decode", 0.0), ("decode", -1.0), ("prefill", 1.0)]:
        hold.begin(phase, busy)
    assert counted == [2_000_000, 900_000]


@pytest.mark.gpu
def test_a_device_counts_as_fast_as_was_measured():
    hold = Hold()
    hold.measure()
    hold.launch_seconds["decode"] = 0.01
    started = time.perf_counter()
    hold.begin("decode", 0.01)
    assert time.perf_counter() - started < 0.005  # the host does not wait
    torch.cuda.synchronize()
    assert time.perf_counter() - started == pytest.approx(0.009, rel=0.2)
