"""How long a device is kept busy before a step."""

import pytest
import torch

from framework.engine.torch_engine import hold
from framework.engine.torch_engine.hold import Hold, largest_weights


@pytest.fixture
def held(monkeypatch):
    seconds = []
    monkeypatch.setattr(hold, "read_for", lambda time, _source: seconds.append(time))
    return seconds


def test_a_device_is_held_for_a_launch_or_as_long_as_it_would_be_busy(held):
    tested = Hold(torch.zeros(4, dtype=torch.int32))
    assert held.pop() == 0.0  # it was compiled
    tested.launch_seconds["decode"] = 0.001
    for phase, busy in [("decode", 1.0), ("decode", 0.001), ("decode", 0.0), ("decode", -1.0), ("prefill", 1.0)]:
        tested.begin(phase, busy)
    assert held == pytest.approx([0.002, 0.0009])


def test_the_largest_weights_are_read_whatever_their_dtype():
    model = torch.nn.ModuleList([torch.nn.Linear(3, 5, dtype=torch.bfloat16), torch.nn.Linear(2, 2)])
    expected = model[0].weight.detach().view(-1)[:14].view(torch.int32)  # the 15th has no other half
    assert largest_weights(model).tolist() == expected.tolist()
