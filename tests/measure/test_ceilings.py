"""Ceilings on the CPU at hand, and how they are timed."""

import time

import pytest
import torch

from framework.measure import ceilings
from framework.measure.ceilings import Ceilings, measure_ceilings, median_time, readers

CPU = torch.device("cpu")


@pytest.mark.timing
def test_ceilings_are_within_reason():
    measured = measure_ceilings(CPU, torch.float32, 1)
    assert 1e8 < measured.read_bandwidth < 1e13
    assert 1e8 < measured.copy_bandwidth < 1e13
    assert 1e8 < measured.matmul_rate < 1e15


def test_a_ceiling_is_that_of_the_best_round(monkeypatch):
    """As if something else ran on the CPU in some of them."""
    bandwidths, rates = iter([(5.0, 1.0), (9.0, 3.0), (7.0, 2.0), (2.0, 4.0), (1.0, 1.0)]), iter([4, 11, 10, 9, 6])
    monkeypatch.setattr(ceilings, "_bandwidths", lambda *_: next(bandwidths))
    monkeypatch.setattr(ceilings, "_matmul_rate", lambda *_: next(rates))
    assert measure_ceilings(CPU, torch.float32, 1) == Ceilings(9.0, 4.0, 11)


def test_every_reader_reads_everything():
    """The result of each changes with the last number, and so does it with the first."""
    for place in (0, -1):
        source = torch.zeros(2, 2**16)
        before = [reader().clone() for reader in readers(source)]
        source.view(-1)[place] = 5.0
        assert all(not torch.equal(old, reader()) for old, reader in zip(before, readers(source), strict=True))


@pytest.mark.timing
def test_a_median_time_is_in_seconds_and_without_the_warm_up():
    num_calls = 0

    def call():
        nonlocal num_calls
        num_calls += 1
        time.sleep(0.05 if num_calls <= 3 else 0.002)

    assert 0.002 <= median_time(call, CPU, num_repeats=5) < 0.03
    assert num_calls == 8
