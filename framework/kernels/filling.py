"""Keeps a device as busy as a decode step does, until the host says that it is enough."""

# mypy: allow-untyped-defs

from __future__ import annotations

from torch import Tensor

from framework.kernels.triton_support import device_facts, jit_for_any, tl, triton

try:
    from triton.language.extra.cuda import globaltimer
except ImportError:
    globaltimer = None

PROGRAMS_PER_SM = 2
ROWS = 64  # that the weights are multiplied by
INPUTS, OUTPUTS = 128, 128  # of a tile of the weights
TILE = INPUTS * OUTPUTS  # numbers
TILES = 8  # that a program multiplies between two looks at the clock and at the host's word


def fill(weights: Tensor, seconds: float, ticket: int, released: Tensor, released_on_device: Tensor) -> None:
    """Multiply `weights`, TILE or more flat bfloat16 numbers, over and over, as one Triton launch on their GPU.

    It ends after so many seconds, or once the host has set `released[0]`, in pinned memory, to `ticket` or more. One
    program passes that on to the others by `released_on_device`; both are (1,) int64. All multiprocessors read and
    multiply, so the device draws about what a decode step draws. The host does not wait.
    RuntimeError where Triton is not installed.
    """
    if triton is None:
        raise RuntimeError("servers that share a GPU need triton, which has no wheel for this platform")
    num_programs = PROGRAMS_PER_SM * device_facts(weights.device)[0]
    sums, num_tiles = weights.new_empty(num_programs), weights.numel() // TILE
    arguments = weights, sums, num_tiles, int(1e9 * seconds), ticket, released, released_on_device
    sizes = {"ROWS": ROWS, "INPUTS": INPUTS, "OUTPUTS": OUTPUTS, "TILES": TILES}
    _fill_kernel[(num_programs,)](*arguments, **sizes, num_warps=4, num_stages=3)


@jit_for_any("num_tiles", "nanoseconds", "ticket")
def _fill_kernel(
    weights,
    sums,
    num_tiles,
    nanoseconds,
    ticket,
    released,
    released_on_device,
    ROWS: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Program p multiplies tiles p, p + programs, … and begins again after the last.

    Only one looks at the clock and at the host's memory: some 1,000 requests for the same word there took 3 ms. All
    threads of a program have to leave the loop together, so they ask by an atomic operation, which has one answer.
    """
    end = globaltimer() + nanoseconds
    inputs, outputs = tl.arange(0, INPUTS), tl.arange(0, OUTPUTS)
    in_rows = tl.arange(0, ROWS)[:, None] * INPUTS + inputs[None, :]
    in_tile = inputs[:, None] * OUTPUTS + outputs[None, :]
    rows = tl.load(weights + in_rows)
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    tile = tl.program_id(0) % num_tiles
    zero = ticket.to(tl.int64) * 0
    last = zero
    while last < ticket:
        for _ in range(TILES):
            number = tile.to(tl.int64) * (INPUTS * OUTPUTS) + in_tile
            total = tl.dot(rows, tl.load(weights + number), total)
            tile = (tile + tl.num_programs(0)) % num_tiles
        passed_on = zero
        if tl.program_id(0) == 0:
            is_over = (globaltimer() >= end) | (tl.load(released, volatile=True) >= ticket)
            passed_on = tl.where(is_over, ticket, zero)
        last = tl.atomic_max(released_on_device, passed_on, sem="relaxed")
    tl.store(sums + tl.program_id(0), tl.sum(tl.sum(total, 1), 0).to(tl.bfloat16))
