"""Kernels write all of their output: what torch.empty gives them is full of NaN, or of numbers that are no index."""

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Every torch.empty on a CPU; a GPU's allocator is poisoned by the tests that run there."""

    def empty(*shape, **options):
        tensor = torch.zeros(shape[0] if isinstance(shape[0], tuple | list) else shape, **options)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min + 1)

    if not torch.cuda.is_available():
        monkeypatch.setattr(torch, "empty", empty)
