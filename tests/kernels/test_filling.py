"""A device that is kept busy for a time, or until the host says that it is enough."""

import time

import pytest
import torch

from framework.kernels import filling
from framework.kernels.filling import fill


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setattr(filling, "triton", None)
    with pytest.raises(RuntimeError, match="servers that share a GPU need triton"):
        fill(torch.zeros(4, dtype=torch.bfloat16), 1.0, torch.zeros(1, dtype=torch.int64), 1)


@pytest.fixture
def released():
    return torch.zeros(1, dtype=torch.int64, pin_memory=True)


@pytest.mark.gpu
@pytest.mark.parametrize("num_numbers", [1000, 2**27])
def test_a_device_is_busy_for_as_long_as_it_was_told(num_numbers, released):
    weights = torch.ones(num_numbers, dtype=torch.bfloat16, device="cuda")
    fill(weights, 0.0, released, 1)  # compiled
    torch.cuda.synchronize()
    started = time.perf_counter()
    fill(weights, 0.01, released, 1)
    assert time.perf_counter() - started < 0.005  # the host does not wait
    torch.cuda.synchronize()
    assert time.perf_counter() - started == pytest.approx(0.01, rel=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("num_numbers", [1000, 2**27])
def test_it_ends_once_the_host_says_so(num_numbers, released):
    weights = torch.ones(num_numbers, dtype=torch.bfloat16, device="cuda")
    fill(weights, 0.0, released, 1)
    torch.cuda.synchronize()
    fill(weights, 5.0, released, 7)
    for number, is_over in ((6, False), (7, True)):
        released[0] = number
        time.sleep(0.005)
        assert torch.cuda.current_stream().query() == is_over
    started = time.perf_counter()
    fill(weights, 5.0, released, 7)  # it was released before it began
    torch.cuda.synchronize()
    assert time.perf_counter() - started < 0.005
