"""The course's scheme: every tensor of the model as uint8 with one scale and one zero point, dequantized at each use.

Lesson 4 of "Efficiently Serving LLMs", except that values are rounded to the nearest step, not down.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from framework.models.gpt2 import GPT2
from framework.models.layers import SurroundedLinear
from framework.models.llama import Llama
from framework.quantization.replace import check_finite, frozen

NUM_STEPS = 255


def quantize(model: Llama | GPT2) -> Llama | GPT2:
    """Replace all parameters, embeddings, norms, biases and head too, in place; a tied one stays tied.

    Raises ValueError naming the parameter that has a NaN or an infinity.
    """
    quantized: dict[nn.Parameter, tuple[nn.Parameter, nn.Parameter]] = {}
    for path, module in list(model.named_modules()):
        names = tuple(name for name, _ in module.named_parameters(recurse=False))
        for name in names:
            parameter = getattr(module, name)
            if parameter not in quantized:
                check_finite(parameter, f"{path}.{name}")
                stored, state = map(frozen, quantize_tensor(parameter))
                quantized[parameter] = stored, state
            delattr(module, name)
            module.register_parameter(f"{name}_uint8", quantized[parameter][0])
            module.register_parameter(f"{name}_state", quantized[parameter][1])
            setattr(module, f"{name}_dtype", parameter.dtype)
        if names:
            own_class: Any = type(module)
            module.__class__ = dequantizing(own_class, names)
        if isinstance(module, SurroundedLinear):
            module.fused_rows = module.fused_head_rows = 0  # its kernel reads weights that no kernel has just written
    return model


def quantize_tensor(values: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 of the same shape, and (scale, zero point) as float32 (2,): values ≈ uint8 * scale + zero point.

    The error is at most scale / 2, (max - min) / 510; constant tensors are exact.
    """
    values = values.float()
    low, high = values.aminmax()
    scale = high / NUM_STEPS - low / NUM_STEPS  # high - low may be more than float32 holds
    steps = (values / scale - low / scale).round() if scale > 0 else torch.zeros_like(values)
    return steps.clamp(0, NUM_STEPS).to(torch.uint8), torch.stack([scale, low])


def dequantize_tensor(stored: Tensor, state: Tensor, dtype: torch.dtype) -> Tensor:
    values = stored * state[0]
    return values.add_(state[1]).to(dtype)  # one float32 tensor at a time: of a large head's it is 2 GiB


@cache
def dequantizing(module_class: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """The class with a property for each of `names`; one for all its modules, so that torch.compile sees one block."""

    def dequantized(name: str) -> property:
        def get(self: nn.Module) -> Tensor:
            stored, state = getattr(self, f"{name}_uint8"), getattr(self, f"{name}_state")
            return dequantize_tensor(stored, state, getattr(self, f"{name}_dtype"))

        return property(get)

    return type(module_class.__name__, (module_class,), {name: dequantized(name) for name in names})
