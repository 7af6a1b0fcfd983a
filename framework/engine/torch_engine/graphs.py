"""Capturing CUDA graphs, after everything in them has run once."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from framework.stopwatch import garbage_collector_paused

T = TypeVar("T")


@contextmanager
def capturing() -> Iterator[None]:
    """Graphs that nobody needs any more are destroyed before: while another is captured, that would spoil it."""
    gc.collect()
    with garbage_collector_paused():
        yield


def capture(run: Callable[[], T], pool: Any) -> tuple[torch.cuda.CUDAGraph, T]:
    """A graph of what `run` launches, in the memory of `pool`, and where its result is; inside `capturing`."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = run()
    return graph, result
