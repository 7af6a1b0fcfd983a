"""Keeps a device busy by reading its memory for a time, as a step that waits for weights does."""

# mypy: allow-untyped-defs

from __future__ import annotations

from torch import Tensor

from framework.kernels.triton_support import device_facts, jit_for_any, tl, triton

try:
    from triton.language.extra.cuda import globaltimer
except ImportError:
    globaltimer = None

PROGRAMS_PER_SM = 4
BLOCK = 4096  # numbers that a program reads between two looks at the clock


def read_for(seconds: float, source: Tensor) -> None:
    """Read `source`, flat int32 numbers, over and over for so many seconds, as one Triton launch on its GPU.

    All multiprocessors read, so the device draws about what a step draws that reads as much. The host does not wait.
    RuntimeError where Triton is not installed.
    """
    if triton is None:
        raise RuntimeError("servers that share a GPU need triton, which has no wheel for this platform")
    num_programs = PROGRAMS_PER_SM * device_facts(source.device)[0]
    sums = source.new_empty(num_programs)
    _read_kernel[(num_programs,)](source, sums, source.numel(), int(1e9 * seconds), BLOCK=BLOCK, num_warps=8)


@jit_for_any("num_numbers", "nanoseconds")
def _read_kernel(source, sums, num_numbers, nanoseconds, BLOCK: tl.constexpr):
    """Program p reads blocks p, p + programs, … and begins again after the last."""
    end, step = globaltimer() + nanoseconds, tl.num_programs(0).to(tl.int64) * BLOCK
    first, total = tl.program_id(0).to(tl.int64) * BLOCK, tl.zeros([BLOCK], tl.int32)
    while globaltimer() < end:
        first = tl.where(first < num_numbers, first, tl.program_id(0) * BLOCK)
        number = first + tl.arange(0, BLOCK)
        total += tl.load(source + number, number < num_numbers, other=0)
        first += step
    tl.store(sums + tl.program_id(0), tl.sum(total, 0))
