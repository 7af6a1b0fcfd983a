"""What the Triton kernels share: doing without Triton, the device's facts, and the counters of work that is split."""

# mypy: allow-untyped-defs

from __future__ import annotations

import functools

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no wheel for this platform: everything plain still works
    triton = tl = None

MAX_COUNTERS = 2**18

__all__ = [
    "MAX_COUNTERS",
    "check_triton",
    "counters",
    "device_facts",
    "jit",
    "jit_for_any",
    "queue_counters",
    "tl",
    "triton",
]


def jit(kernel):
    """triton.jit, where there is Triton."""
    return triton.jit(kernel) if triton else kernel


def jit_for_any(*arguments: str):
    """The same for a kernel whose integers of these names change from step to step: no value gets its own kernel."""
    return lambda kernel: triton.jit(kernel, do_not_specialize=list(arguments)) if triton else kernel


def check_triton(name: str) -> None:
    """RuntimeError where Triton is not installed."""
    if triton is None:
        raise RuntimeError(f"{name} needs triton, which has no wheel for this platform: call plain_{name} instead")


@functools.cache
def device_facts(device: torch.device) -> tuple[int, bool]:
    """Multiprocessors (1: the interpreter), and whether launches may overlap by programmatic dependent launch."""
    if device.type != "cuda":
        return 1, False
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, torch.version.cuda is not None and properties.major >= 9


@functools.cache
def counters(device: torch.device) -> Tensor:
    """(MAX_COUNTERS,) int32, zero between launches: whoever arrives last resets its own."""
    return torch.zeros(MAX_COUNTERS, dtype=torch.int32, device=device)


@functools.cache
def queue_counters(device: torch.device) -> Tensor:
    """(2,) int32, zero between launches: items that were taken from a queue, and programs that found none left."""
    return torch.zeros(2, dtype=torch.int32, device=device)
