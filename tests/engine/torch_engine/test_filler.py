"""When a device is kept busy beside the steps of emulated servers, and when not."""

import pytest
import torch

from framework.engine.torch_engine import filler
from framework.engine.torch_engine.filler import MAX_GAP, Filler, largest_weights
from framework.kernels.filling import TILE


@pytest.fixture
def filled(monkeypatch):
    """What was launched: for how many seconds at most, until which ticket."""
    launches = []
    monkeypatch.setattr(filler, "fill", lambda _weights, seconds, ticket, *_words: launches.append((seconds, ticket)))
    return launches


def test_what_was_begun_goes_on_until_the_next_or_its_end(filled):
    tested = Filler(torch.zeros(TILE, dtype=torch.bfloat16))
    assert filled.pop() == (0.0, 1)  # it was compiled
    tested.begin(0.25)
    assert (filled.pop(), tested.released.tolist()) == ((0.25, 2), [1])
    tested.begin()
    assert (filled.pop(), tested.released.tolist()) == ((MAX_GAP, 3), [2])
    tested.begin(5.0)  # no longer than a launch takes: an integer of 8 bytes would need another kernel
    assert filled.pop() == (1.0, 4)
    for _ in range(2):
        tested.end()
        assert (filled, tested.released.tolist()) == ([], [4])


def test_the_largest_weights_are_multiplied_whatever_their_dtype():
    odd = torch.nn.Parameter(torch.arange(2 * TILE + 1).to(torch.uint8), requires_grad=False)
    model = torch.nn.ParameterList([odd, torch.nn.Parameter(torch.zeros(2, 2))])
    assert torch.equal(largest_weights(model).view(torch.uint8), odd[:-1])  # the last byte has no other half


def test_weights_of_less_than_a_tile_are_repeated():
    (weights,) = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(3, dtype=torch.bfloat16))])
    numbers = largest_weights(torch.nn.ParameterList([weights]))
    assert len(numbers) >= TILE
    assert torch.equal(numbers[-3:], weights.detach())
