"""What the schemes share: going through the blocks' linear layers, and refusing weights that are no numbers."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from framework.models.gpt2 import GPT2
from framework.models.layers import Linear
from framework.models.llama import Llama


def replace_linears(model: Llama | GPT2, make: Callable[[Linear], nn.Module]) -> None:
    """Put `make(linear)` in the place of every Linear of the blocks, one after the other, so that each is freed.

    Raises ValueError naming the first weight with a NaN or an infinity.
    """
    for index, block in enumerate(model.layers):
        for name, module in list(block.named_children()):
            if isinstance(module, Linear):
                check_finite(module.weight, f"layers.{index}.{name}.weight")
                setattr(block, name, make(module))


def check_finite(tensor: Tensor, name: str) -> None:
    if not tensor.isfinite().all():
        raise ValueError(f"{name} has values that are NaN or infinite: it cannot be quantized")


def frozen(tensor: Tensor) -> nn.Parameter:
    """A parameter without a gradient, as int8 needs."""
    return nn.Parameter(tensor, requires_grad=False)
