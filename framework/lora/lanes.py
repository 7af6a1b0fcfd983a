"""Where an adapter's numbers lie in the memory of a KV cache: the keys and the values of each layer are lanes.

A row of a Layout is cut into its pieces of A and B; each goes into the lane that is emptiest, the largest first.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heapreplace

import torch
from torch import Tensor

from framework.lora.layout import ALIGNMENT, Layout, Projection, aligned


@dataclass(frozen=True, slots=True)
class Lanes:
    """Each of `num_lanes` has `width` numbers of every row.

    `places` maps the column of a row at which a piece begins to its lane and its first column there. Pieces begin at
    multiples of ALIGNMENT. So a lane is made of chunks, each of ALIGNMENT neighbouring numbers of a row; `chunks` says
    which, lane after lane.
    """

    num_lanes: int
    width: int
    places: dict[int, tuple[int, int]]
    chunks: Tensor  # (num_lanes * width / ALIGNMENT,); 0 where a lane has no piece

    def factors(self, projection: Projection, slab: Tensor) -> tuple[Tensor, Tensor]:
        """Views of slab (num_lanes, …, rank, width), as Projection.factors has them of rows (…, rank, width)."""
        num_parts, in_features = len(projection.sizes), projection.linear.in_features
        a = self._piece(slab, projection.start, num_parts * in_features).unflatten(-1, (num_parts, in_features))
        return a, self._piece(slab, projection.middle, sum(projection.sizes))

    def spread(self, rows: Tensor, chunks: Tensor) -> Tensor:
        """Rows (rank, the layout's width) lane by lane (num_lanes, rank, width); `chunks` are on their device."""
        spread = rows.unflatten(1, (-1, ALIGNMENT)).index_select(1, chunks)
        return spread.reshape(len(rows), self.num_lanes, self.width).transpose(0, 1)

    def _piece(self, slab: Tensor, start: int, size: int) -> Tensor:
        lane, first = self.places[start]
        return slab[lane, ..., first : first + size]


def make_lanes(layout: Layout, num_lanes: int) -> Lanes:
    """The lanes of a layout, about equally full."""
    pieces = [
        piece
        for projection in layout.projections
        for piece in (
            (len(projection.sizes) * projection.linear.in_features, projection.start),
            (sum(projection.sizes), projection.middle),
        )
    ]
    ends = [(0, lane) for lane in range(num_lanes)]
    heapify(ends)
    places = {}
    for size, start in sorted(pieces, reverse=True):
        end, lane = ends[0]
        places[start] = lane, end
        heapreplace(ends, (end + aligned(size), lane))
    width = max(end for end, _ in ends)
    chunks = torch.zeros(num_lanes, width // ALIGNMENT, dtype=torch.int64)
    for size, start in pieces:
        (lane, first), num = places[start], aligned(size) // ALIGNMENT
        chunks[lane, first // ALIGNMENT :][:num] = torch.arange(num) + start // ALIGNMENT
    return Lanes(num_lanes, width, places, chunks.flatten())
