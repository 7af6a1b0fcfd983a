"""Normalized latency over the arrival rate by allocation policy: Fig. 12 of vLLM (SOSP 2023)."""

from typing_extensions import Unpack

from experiments.papers.latency import run_latency
from framework.replay import Clock
from framework.study.arguments import Sweep


def run(*, slowdown: float, clock: Clock, **sweep: Unpack[Sweep]) -> None:
    """Replay every arm at every rate; sustained is what keeps the mean within `slowdown` times the lowest of all."""
    run_latency("vllm_latency", "normalized_latency_mean", "normalized latency, mean", slowdown, clock, **sweep)
