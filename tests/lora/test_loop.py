"""What the loop strategy adds is what each row's own A and B give."""

import pytest
import torch

from framework.lora.loop import Loop
from tests.lora.deltas import CASES, delta


@pytest.mark.parametrize("slots", CASES.values(), ids=CASES)
def test_every_row_has_its_own_adapter(slots):
    found, expected = delta(Loop, slots)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert (found[slots == 0] == 0).all()
    assert (found[slots > 0] != 0).any(dim=1).all()


def test_a_graph_cannot_hold_it():
    assert not Loop.is_static
