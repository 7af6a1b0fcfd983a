"""A device that is kept busy for a time, or until the host says that it is enough."""

import time

import pytest
import torch
import triton.language as tl

from framework.kernels import filling
from framework.kernels.filling import TILE, fill


@pytest.fixture
def words():
    """On the host and on the device."""
    on_gpu = torch.cuda.is_available()
    return [torch.zeros(1, dtype=torch.int64, pin_memory=on_gpu), torch.zeros(1, dtype=torch.int64)]


def test_without_triton_it_says_so(monkeypatch, words):
    monkeypatch.setattr(filling, "triton", None)
    with pytest.raises(RuntimeError, match="servers that share a GPU need triton"):
        fill(torch.zeros(TILE, dtype=torch.bfloat16), 1.0, 1, *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs in Triton's interpreter without CUDA")
@pytest.mark.parametrize(("released", "num_readings"), [(0, 7), (2, 7), (3, 4), (4, 4)])
def test_it_leaves_its_loop_after_its_time_or_when_the_host_says_so(monkeypatch, words, released, num_readings):
    readings = []

    def read_clock():
        readings.append(1000 * len(readings))  # ns; both programs begin with one, and go on for a round once it is over
        return tl.full([], readings[-1], tl.int64)

    monkeypatch.setattr(filling, "globaltimer", read_clock)
    words[0][0] = released
    fill(torch.ones(40_000, dtype=torch.bfloat16), 4e-6, 3, *words)
    assert (words[1].item(), len(readings)) == (3, num_readings)


@pytest.fixture(params=[TILE, 2**27])
def weights(request):
    return torch.ones(request.param, dtype=torch.bfloat16, device="cuda")


@pytest.mark.gpu
def test_a_device_is_busy_for_as_long_as_it_was_told_or_until_the_host_says_so(weights, words):
    words[1] = words[1].cuda()
    fill(weights, 0.0, 1, *words)  # compiled
    torch.cuda.synchronize()
    started = time.perf_counter()
    fill(weights, 0.01, 2, *words)
    assert time.perf_counter() - started < 0.005  # the host does not wait
    torch.cuda.synchronize()
    assert time.perf_counter() - started == pytest.approx(0.01, rel=0.1)
    fill(weights, 1.0, 7, *words)
    for number, is_over in ((6, False), (7, True)):
        words[0][0] = number
        time.sleep(0.002)
        assert torch.cuda.current_stream().query() == is_over
    words[0][0] = 8
    started = time.perf_counter()
    fill(weights, 1.0, 8, *words)  # it was released before it began
    torch.cuda.synchronize()
    assert time.perf_counter() - started < 0.001
