"""What a strategy adds to one linear layer for rows of several adapters, and the same row by row in float64."""

import numpy as np
import torch

from framework.lora.adapters import RandomAdapters
from framework.lora.pool import pool_of, serve_adapters
from tests.quantization.small_models import make_model

SLOTS = np.array([2, 0, 1, 2, 3, 1, 0, 2, 2])  # of each row; 0: no adapter
CASES = {
    "in turns": SLOTS,
    "none": np.array([0, 0]),
    "one": np.array([3]),
    "no row": np.array([], dtype=np.int64),
    "prompt": np.full(20, 2),
    "prompts": np.repeat([3, 0, 1, 3], [17, 5, 30, 1]),
    "prompt beside decodes": np.repeat([1, 2, 0, 3, 2], [1, 1, 1, 1, 40]),
}


def make_pool(strategy):
    """Of a small model, with adapters of rank 2, 8 and 4."""
    model = make_model("llama")
    source = RandomAdapters(ranks=[2])
    serve_adapters(model, strategy=strategy, adapters=lambda: source, num_slots=3, max_rank=8)
    pool = pool_of(model)
    for slot, rank in enumerate((2, 8, 4), start=1):
        pool.put(slot, RandomAdapters(ranks=[rank], seed=slot).load("any", pool.layout, torch.float32))
    return pool


def delta(strategy, slots=SLOTS):
    """(found, expected) of the first layer's query, key and value projection."""
    pool = make_pool(strategy)
    tables = pool.step_tables(slots)
    pool.set_step(torch.from_numpy(tables), tables)
    projection = pool.layout.projections[0]
    x = torch.randn(len(slots), projection.linear.in_features, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(len(slots), sum(projection.sizes), dtype=torch.float64)
    for row, slot in enumerate(slots):
        parts = [x[row].double() @ a.double().T @ b.double() for _, _, a, b in projection.parts(pool.slab[slot])]
        expected[row] = torch.cat(parts)
    return projection.linear.lora(x), expected
