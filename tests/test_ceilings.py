"""Ceilings on the CPU at hand, and how they are timed."""

import time

import torch

from framework.ceilings import measure_ceilings, median_time, readers

CPU = torch.device("cpu")


def test_ceilings_are_within_reason():
    ceilings = measure_ceilings(CPU, torch.float32, 1)
    assert 1e8 < ceilings.read_bandwidth < 1e13
    assert 1e8 < ceilings.copy_bandwidth < 1e13
    assert 1e8 < ceilings.matmul_rate < 1e15


def test_every_reader_reads_everything():
    """The result of each changes with the last number, and so does it with the first."""
    for place in (0, -1):
        source = torch.zeros(2, 2**16)
        before = [reader().clone() for reader in readers(source)]
        source.view(-1)[place] = 5.0
        assert all(not torch.equal(old, reader()) for old, reader in zip(before, readers(source), strict=True))


def test_a_median_time_is_in_seconds_and_without_the_warm_up():
    num_calls = 0

    def call():
        nonlocal num_calls
        num_calls += 1
        time.sleep(0.05 if num_calls <= 3 else 0.002)

    assert 0.002 <= median_time(call, CPU, num_repeats=5) < 0.03
    assert num_calls == 8
