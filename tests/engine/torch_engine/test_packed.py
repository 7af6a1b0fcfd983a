"""Arrays arrive in place, whatever was there before, each aligned as Triton takes it for granted."""

import numpy as np
import torch

from framework.engine.torch_engine.packed import Packed
from framework.engine.torch_engine.upload import ALIGNMENT


def test_arrays_arrive_at_the_same_addresses():
    packed = Packed({"rows": (3,), "table": (2, 5), "one": (1,)}, torch.device("cpu"))
    addresses = {name: tensor.data_ptr() for name, tensor in packed.on_device.items()}
    packed.fill({"rows": np.array([1, 2, 3]), "table": np.arange(10).reshape(2, 5), "one": np.array([7])})
    packed.send()
    packed.fill({"rows": np.array([8, 9]), "table": np.array([[40, 41], [50, 51]]), "one": np.array([6])})
    packed.send()
    sent = packed.on_device
    assert sent["rows"][:2].tolist() == [8, 9]
    assert sent["table"][:, :2].tolist() == [[40, 41], [50, 51]]
    assert sent["one"].tolist() == [6]
    assert {name: tensor.data_ptr() for name, tensor in sent.items()} == addresses
    assert all(tensor.storage_offset() % ALIGNMENT == 0 for tensor in sent.values())
    assert all(tensor.dtype == torch.int32 for tensor in sent.values())
