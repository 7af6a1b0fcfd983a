"""What it takes to copy KV blocks from one server to another: a bandwidth, a latency, and who else uses the link.

Every server has one link to all others, which sends and receives at once; copies over it queue behind one another.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal, get_args

from framework.checks import not_negative, positive

Copy = Literal["at_end", "layer_by_layer"]
MAX_LATENCY = 3600.0  # s


@dataclass(frozen=True, kw_only=True)
class Link:
    """`bandwidth` (bytes/s) each way, and `latency` (s) until the last byte has come.

    `copy` says when the blocks of a prompt are copied: `at_end`, once its prefill is over, or `layer_by_layer` beside
    its last step, so that only the last layer's part is left when that is over.
    """

    bandwidth: float
    latency: float = 0.0
    copy: Copy = "at_end"

    def __post_init__(self) -> None:
        positive("link.bandwidth", self.bandwidth)
        not_negative("link.latency", self.latency)
        if self.bandwidth < 1.0 or self.latency > MAX_LATENCY:
            given = f"link.bandwidth={self.bandwidth:g} bytes/s and link.latency={self.latency:g} s"
            raise ValueError(f"{given}: give at least 1 byte/s, and at most {MAX_LATENCY:g} s")
        if self.copy not in get_args(Copy):
            raise ValueError(f"link.copy={self.copy!r} is not one of {', '.join(get_args(Copy))}")


class Traffic:
    """When each server's link is free next, in seconds; a copy takes the sender's and the receiver's at once."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.free_times: defaultdict[tuple[str, int], float] = defaultdict(float)

    def carry(self, source: int, target: int, num_bytes: float, now: float) -> tuple[float, float]:
        """When a copy that is ready `now` begins, behind all that were told before, and when its bytes are through."""
        ends = ("from", source), ("to", target)
        start = max(now, *(self.free_times[end] for end in ends))
        end = start + num_bytes / self.link.bandwidth
        self.free_times.update(dict.fromkeys(ends, end))
        return start, end
