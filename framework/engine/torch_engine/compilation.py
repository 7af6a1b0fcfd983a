"""torch.compile for the blocks of a model, and the guard that keeps every compilation out of the measured window."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType

import torch
from torch import Tensor, nn

from framework.models.gpt2 import GPT2
from framework.models.layers import SurroundedLinear
from framework.models.llama import Llama

COMPILED_METHODS = ("project", "finish")
MAX_COMPILED_ROWS = 2**15  # beyond it an index into the activations may need 64 bits, which would compile anew

Compiled = Mapping[str, Callable[..., Tensor]]  # by the method's name


def compile_blocks(model: Llama | GPT2) -> Compiled:
    """The methods of the model's blocks, which torch compiles when they are called.

    torch keeps what it compiled by the code of a function. Each model's methods have code of their own: so they need
    not look through what is for others, nor count it against torch's limit.
    """
    block = type(model.layers[0])
    return {
        name: torch.compile(with_own_code(getattr(block, name)), dynamic=True, fullgraph=True)
        for name in COMPILED_METHODS
    }


def with_own_code(function: FunctionType) -> FunctionType:
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


def configure_model(model: Llama | GPT2, *, fused: bool, compiled: Compiled) -> None:
    """Say which calls of `model` take the fused kernels and which the `compiled` blocks; undoes an earlier choice.

    In float32 only calls of one row are fused: without tensor cores cuBLAS is the faster for more (H200).
    """
    most = 0 if not fused else 1 if model.norm.weight.dtype == torch.float32 else MAX_COMPILED_ROWS
    model.lm_head.max_fused_rows = min(most, model.lm_head.fused_head_rows)
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # rather than run uncompiled with a warning
    for block in model.layers:
        linears = [module for module in block.modules() if isinstance(module, SurroundedLinear)]
        for linear in linears:
            linear.max_fused_rows = min(most, linear.fused_rows)
        num_fused = min(linear.max_fused_rows for linear in linears)
        for name in COMPILED_METHODS:
            block.__dict__.pop(name, None)
            if name in compiled:
                block.__dict__[name] = _by_rows(block, getattr(type(block), name), compiled[name], num_fused)


def _by_rows(
    block: nn.Module, plain: Callable[..., Tensor], compiled: Callable[..., Tensor], num_fused: int
) -> Callable[..., Tensor]:
    def call(x: Tensor, *others: Tensor) -> Tensor:
        is_compiled = num_fused < x.shape[0] <= MAX_COMPILED_ROWS
        return (compiled if is_compiled else plain)(block, x, *others)

    return call


@contextmanager
def hints_ignored() -> Iterator[None]:
    """What torch advises while it compiles (such as TF32, which would change the results) is not for the user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.")
        yield


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
