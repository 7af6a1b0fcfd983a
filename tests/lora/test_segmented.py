"""What the segmented strategy adds is what each row's own A and B give."""

import numpy as np
import pytest
import torch

from framework.lora.segmented import Segmented
from tests.lora.deltas import CASES, SLOTS, delta, make_pool


@pytest.mark.parametrize("slots", CASES.values(), ids=CASES)
def test_every_row_has_its_own_adapter(slots):
    found, expected = delta(Segmented, slots)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert (found[slots == 0] == 0).all()
    assert (found[slots > 0] != 0).any(dim=1).all()


def test_tables_have_a_place_for_every_row_whatever_the_adapters():
    pool = make_pool(Segmented)
    assert {pool.step_tables(slots).shape for slots in (SLOTS, np.zeros_like(SLOTS), np.arange(9))} == {(4, 9)}


def test_on_a_cpu_an_adapter_is_one_group(monkeypatch):
    pool, log = make_pool(Segmented), []
    assert pool.step_tables(np.repeat([2, 0, 1, 2], 100))[1:, :4].tolist() == [
        [0, 1, 2, 0],  # slots
        [0, 100, 200, 0],  # starts
        [100, 100, 200, 0],  # lengths
    ]
    matmul = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda one, other: log.append(len(one)) or matmul(one, other))
    delta(Segmented, np.repeat([2, 0, 1, 2], 10))
    assert log[-12:] == [10, 10, 20, 20] * 3  # A and B of q, k and v
