"""torch.compile for the blocks of a model, and the guard that keeps every compilation out of the measured window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from framework.models.linear import Linear

COMPILED_METHODS = ("project", "finish")
MAX_COMPILED_ROWS = 2**15  # beyond it an index into the activations may need 64 bits, which would compile anew


def configure_model(model: nn.Module, *, max_fused_rows: int, compile: bool) -> None:
    """Say which calls of `model` take the fused kernels and which the compiled blocks; undoes an earlier choice."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.max_fused_rows = max_fused_rows
    compiled: dict[str, Callable[..., Tensor]] = {}
    layers = model.get_submodule("layers")
    assert isinstance(layers, nn.ModuleList)
    for block in layers:
        for name in COMPILED_METHODS:
            block.__dict__.pop(name, None)
            if compile:
                method = getattr(type(block), name)
                compiled.setdefault(name, torch.compile(method, dynamic=True))
                block.__dict__[name] = _by_rows(block, method, compiled[name], max_fused_rows)


def _by_rows(block: nn.Module, plain: Callable[..., Tensor], compiled: Any, max_fused_rows: int) -> Any:
    def call(x: Tensor, *others: Tensor) -> Tensor:
        is_compiled = max_fused_rows < x.shape[0] <= MAX_COMPILED_ROWS
        return (compiled if is_compiled else plain)(block, x, *others)

    return call


@contextmanager
def compilation_refused() -> Iterator[None]:
    """RuntimeError if torch.compile or Triton has to compile inside: a measured step must not pay for it."""
    from triton import knobs

    def refuse(**details: Any) -> None:
        raise RuntimeError(f"Triton compiles {details['repr']} inside the measured window")

    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = refuse
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            yield
    finally:
        knobs.runtime.jit_cache_hook = before
