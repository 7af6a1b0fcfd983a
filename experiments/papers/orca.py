"""Static against continuous batching, median normalized latency over the arrival rate: Fig. 10 of Orca (OSDI 2022)."""

from typing_extensions import Unpack

from experiments.papers.latency import run_latency
from framework.replay import Clock
from framework.study.arguments import Sweep


def run(*, slowdown: float, clock: Clock, **sweep: Unpack[Sweep]) -> None:
    """Replay every arm at every rate; sustained is what keeps the median within `slowdown` times the lowest of all."""
    run_latency("orca", "normalized_latency_p50", "normalized latency, median", slowdown, clock, **sweep)
