"""An adapter beside the weights of a model that computes nothing else, as it is trained or evaluated.

Its rows are one tensor, of which every linear layer reads its own piece: so an optimizer has one leaf to change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from framework.kernels.lora import adapter_delta
from framework.lora.layout import Layout, Projection


def initial_rows(layout: Layout, rank: int, seed: int) -> Tensor:
    """(rank, width) float32 of an adapter that changes nothing yet: A uniform within 1/√in_features, B zero, as PEFT's.

    Raises ValueError for a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"rank {rank} must be at least 1")
    rows, generator = torch.zeros(rank, layout.width), torch.Generator().manual_seed(seed)
    for a, _ in layout.parts(rows).values():
        bound = 1 / math.sqrt(a.shape[1])
        a.uniform_(-bound, bound, generator=generator)
    return rows


@contextmanager
def attached(layout: Layout, rows: Tensor) -> Iterator[None]:
    """Within it the layers of `layout` add this adapter; outputs are differentiable by `rows` (rank, width)."""
    for projection in layout.projections:
        projection.linear.lora = OneAdapter(rows, projection)
    try:
        yield
    finally:
        for projection in layout.projections:
            projection.linear.lora = None


class OneAdapter:
    """What one linear layer adds: the same adapter in every row."""

    def __init__(self, rows: Tensor, projection: Projection) -> None:
        self.rows, self.projection = rows, projection

    def __call__(self, x: Tensor) -> Tensor:
        """(rows of x, in_features), normed, or token ids → (rows of x, out_features)."""
        a, b = self.projection.factors(self.rows)
        if self.projection.is_lookup:
            return a[:, 0, x].T @ b
        return adapter_delta(x, a, b, self.projection.sizes)
