"""A device that reads for a time."""

import time

import pytest
import torch

from framework.kernels import reading
from framework.kernels.reading import read_for


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setattr(reading, "triton", None)
    with pytest.raises(RuntimeError, match="servers that share a GPU need triton"):
        read_for(1.0, torch.zeros(4, dtype=torch.int32))


@pytest.mark.gpu
@pytest.mark.parametrize("num_numbers", [1000, 2**26])
def test_a_device_reads_for_as_long_as_it_was_told(num_numbers):
    source = torch.arange(num_numbers, dtype=torch.int32, device="cuda")
    read_for(0.0, source)  # compiled
    torch.cuda.synchronize()
    started = time.perf_counter()
    read_for(0.01, source)
    assert time.perf_counter() - started < 0.005  # the host does not wait
    torch.cuda.synchronize()
    assert time.perf_counter() - started == pytest.approx(0.01, rel=0.1)
