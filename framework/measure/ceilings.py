"""The device's ceilings as measured: read and copy bandwidth, and the rate of a large matrix multiplication.

The data is random: a GPU's clocks fall with the bits that flip, so zeros would look faster than work ever is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from framework.checks import check_threads

NUM_WARM_UPS = 3


@dataclass(frozen=True, slots=True)
class Effort:
    """How large the operands are, far beyond the caches; and how often all is timed, and each call in one round.

    A CPU is shared: what else runs there for a while slows whole rounds down, never up.
    """

    num_bytes: int
    matrix_side: int
    num_rounds: int
    num_repeats: int


ON_GPU = Effort(num_bytes=4 * 2**30, matrix_side=8192, num_rounds=1, num_repeats=20)
ON_CPU = Effort(num_bytes=128 * 2**20, matrix_side=512, num_rounds=5, num_repeats=7)


@dataclass(frozen=True, slots=True)
class Ceilings:
    read_bandwidth: float  # bytes/s
    copy_bandwidth: float  # bytes/s, read and written ones both counted
    matmul_rate: float  # FLOP/s, in the model's dtype


def measure_ceilings(device: torch.device, dtype: torch.dtype, num_threads: int | None) -> Ceilings:
    """The best round on `device`, each with medians; on a CPU with `num_threads` (None: as they are).

    Takes 8 GiB of a GPU for a moment, and some seconds of a CPU.
    """
    check_threads("engine.num_threads", num_threads)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    effort = ON_GPU if device.type == "cuda" else ON_CPU
    rounds = [(*_bandwidths(device, effort), _matmul_rate(device, dtype, effort)) for _ in range(effort.num_rounds)]
    return Ceilings(*map(max, zip(*rounds, strict=True)))


def _bandwidths(device: torch.device, effort: Effort) -> tuple[float, float]:
    """Of reading and of copying."""
    source = torch.randn(effort.num_bytes // 4, device=device).view(-1, 2**16)
    target = torch.empty_like(source)
    read = min(median_time(call, device, effort.num_repeats) for call in readers(source))
    copy = median_time(lambda: target.copy_(source), device, effort.num_repeats)
    return effort.num_bytes / read, 2 * effort.num_bytes / copy


def _matmul_rate(device: torch.device, dtype: torch.dtype, effort: Effort) -> float:
    side = effort.matrix_side
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / median_time(lambda: torch.mm(a, b, out=out), device, effort.num_repeats)


def readers(source: Tensor) -> list[Callable[[], Tensor]]:
    """Ways to read all of `source` once; which of them is the fastest depends on the device."""
    halves = source.view(torch.bfloat16) if source.is_cuda else source
    vector = torch.ones(halves.shape[1], dtype=halves.dtype, device=source.device)
    return [
        lambda: source.sum(),
        lambda: source.sum(dim=1),
        lambda: source.amax(dim=1),
        lambda: source.view(torch.int32).amax(),
        lambda: torch.mv(halves, vector),
    ]


def median_time(call: Callable[[], object], device: torch.device, num_repeats: int) -> float:
    """Seconds of `call` after a warm-up: by CUDA events on a GPU, by the host's clock on a CPU."""
    for _ in range(NUM_WARM_UPS):
        call()
    if device.type != "cuda":
        return statistics.median(_host_time(call) for _ in range(num_repeats))
    pairs = []
    for _ in range(num_repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return 1e-3 * statistics.median(start.elapsed_time(end) for start, end in pairs)


def _host_time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ridge(ceilings: Ceilings) -> float:
    """FLOP/byte above which the arithmetic binds."""
    return ceilings.matmul_rate / ceilings.read_bandwidth


def limits(ceilings: Ceilings) -> str:
    return f"{1e-9 * ceilings.read_bandwidth:,.0f} GB/s, {1e-12 * ceilings.matmul_rate:.3g} TFLOP/s"
