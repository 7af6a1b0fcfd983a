"""What the segmented strategy adds is what each row's own A and B give."""

import numpy as np
import pytest
import torch

from framework.lora.segmented import Segmented
from tests.lora.deltas import SLOTS, delta


@pytest.mark.parametrize("slots", [SLOTS, np.array([0, 0]), np.array([3])], ids=["mixed", "none", "one"])
def test_every_row_has_its_own_adapter(slots):
    found, expected = delta(Segmented, slots)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert (found[slots == 0] == 0).all()
    assert (found[slots > 0] != 0).any(dim=1).all()


def test_tables_have_a_place_for_every_row_whatever_the_adapters():
    assert {Segmented().tables(slots).shape for slots in (SLOTS, np.zeros_like(SLOTS), np.arange(9))} == {(4, 9)}
