"""torch.compile for the blocks of a model, and the guard that keeps every compilation out of the measured window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from framework.models.gpt2 import GPT2
from framework.models.layers import SurroundedLinear
from framework.models.llama import Llama

COMPILED_METHODS = ("project", "finish")
MAX_COMPILED_ROWS = 2**15  # beyond it an index into the activations may need 64 bits, which would compile anew


def configure_model(model: Llama | GPT2, *, fused: bool, compile: bool) -> None:
    """Say which calls of `model` take the fused kernels and which the compiled blocks; undoes an earlier choice.

    In float32 only calls of one row are fused: without tensor cores cuBLAS is the faster for more (H200).
    """
    most = 0 if not fused else 1 if model.norm.weight.dtype == torch.float32 else MAX_COMPILED_ROWS
    model.lm_head.max_fused_rows = min(most, model.lm_head.fused_head_rows)
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # rather than run uncompiled with a warning
    compiled: dict[str, Callable[..., Tensor]] = {}
    for block in model.layers:
        linears = [module for module in block.modules() if isinstance(module, SurroundedLinear)]
        for linear in linears:
            linear.max_fused_rows = min(most, linear.fused_rows)
        num_fused = min(linear.max_fused_rows for linear in linears)
        for name in COMPILED_METHODS:
            block.__dict__.pop(name, None)
            if compile:
                method = getattr(type(block), name)
                compiled.setdefault(name, torch.compile(method, dynamic=True, fullgraph=True))
                block.__dict__[name] = _by_rows(block, method, compiled[name], num_fused)


def _by_rows(
    block: nn.Module, plain: Callable[..., Tensor], compiled: Callable[..., Tensor], num_fused: int
) -> Callable[..., Tensor]:
    def call(x: Tensor, *others: Tensor) -> Tensor:
        is_compiled = num_fused < x.shape[0] <= MAX_COMPILED_ROWS
        return (compiled if is_compiled else plain)(block, x, *others)

    return call


@contextmanager
def compilation_refused() -> Iterator[None]:
    """RuntimeError if torch.compile or Triton has to compile inside: a measured step must not pay for it."""
    from triton import knobs

    def refuse(**details: object) -> None:
        raise RuntimeError(f"Triton compiles {details['repr']} inside the measured window")

    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = refuse
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            yield
    finally:
        knobs.runtime.jit_cache_hook = before
