"""Arrays arrive as they were, each at an address that Triton takes for aligned."""

import numpy as np
import torch

from framework.engine.torch_engine.upload import ALIGNMENT, upload


def test_arrays_arrive_flat_and_aligned():
    arrays = {"rows": np.arange(6).reshape(2, 3), "one": np.array([-7]), "none": np.array([], dtype=int)}
    arrived = upload(torch.device("cpu"), arrays | {"last": np.array([1, 2])})
    assert {name: tensor.tolist() for name, tensor in arrived.items()} == {
        "rows": [0, 1, 2, 3, 4, 5],
        "one": [-7],
        "none": [],
        "last": [1, 2],
    }
    assert all(tensor.dtype == torch.int32 for tensor in arrived.values())
    assert all(tensor.storage_offset() % ALIGNMENT == 0 for tensor in arrived.values())
