"""When a device is kept busy beside the steps of emulated servers, and when not."""

import pytest
import torch

from framework.engine.torch_engine import filler
from framework.engine.torch_engine.filler import SECONDS, Filler, largest_weights


@pytest.fixture
def filled(monkeypatch):
    """What was launched: for how many seconds at most, until which ticket."""
    launches = []
    monkeypatch.setattr(filler, "fill", lambda _weights, seconds, ticket, *_words: launches.append((seconds, ticket)))
    return launches


def test_what_was_begun_goes_on_until_the_next_or_its_end(filled):
    tested = Filler(torch.zeros(4, dtype=torch.bfloat16))
    assert filled.pop() == (0.0, 1)  # it was compiled
    tested.begin(0.25)
    assert (filled.pop(), tested.released.tolist()) == ((0.25, 2), [1])
    tested.begin()
    assert (filled.pop(), tested.released.tolist()) == ((SECONDS, 3), [2])
    for _ in range(2):
        tested.end()
        assert (filled, tested.released.tolist()) == ([], [3])


def test_the_largest_weights_are_multiplied_whatever_their_dtype():
    odd = torch.nn.Parameter(torch.arange(17, dtype=torch.uint8), requires_grad=False)
    model = torch.nn.ParameterList([odd, torch.nn.Parameter(torch.zeros(2, 2))])
    expected = torch.arange(16, dtype=torch.uint8).view(torch.bfloat16)  # the 17th has no other half
    assert torch.equal(largest_weights(model), expected)
