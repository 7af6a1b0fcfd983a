"""What the gathered strategy adds is what each row's own A and B give."""

import numpy as np
import pytest
import torch

from framework.lora import gathered
from framework.lora.gathered import Gathered
from tests.lora.deltas import SLOTS, delta


@pytest.mark.parametrize("slots", [SLOTS, np.array([0, 0]), np.array([3])], ids=["mixed", "none", "one"])
def test_every_row_has_its_own_adapter(slots):
    found, expected = delta(Gathered, slots)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert (found[slots == 0] == 0).all()
    assert (found[slots > 0] != 0).any(dim=1).all()


def test_rows_beyond_the_memory_limit_are_gathered_in_parts(monkeypatch):
    whole, _ = delta(Gathered)
    monkeypatch.setattr(gathered, "MAX_GATHERED_BYTES", 1)  # one row at a time
    torch.testing.assert_close(delta(Gathered)[0], whole)
