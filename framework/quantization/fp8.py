"""FP8: float8_e4m3fn weights with a scale per output channel, activations with one per token (arXiv:2209.05433)."""

from __future__ import annotations

import torch
from torch import Tensor

from framework.kernels.byte_linear import fused_byte_linear, fused_dynamic_byte_linear
from framework.kernels.fp8 import (
    dynamic_fp8_linear,
    plain_fp8_linear,
    quantize_fp8,
)
from framework.kernels.linear import Surroundings
from framework.models.gpt2 import GPT2
from framework.models.layers import Linear, SurroundedLinear
from framework.models.llama import Llama
from framework.quantization.replace import frozen, replace_linears

FIRST_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
MULTIPLE = 16  # of in_features and out_features, for torch._scaled_mm


class FP8Linear(SurroundedLinear):
    """`weight` (out_features, in_features) float8, `scale` (out_features, 1) float32.

    Calls of up to `weight_only_rows` rows keep their activations as they are.
    """

    fused_rows = 2**15

    def __init__(self, linear: Linear, weight_only_rows: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.scale = map(frozen, quantize_fp8(linear.weight))
        self.bias, self.weight_only_rows = linear.bias, weight_only_rows

    def compute(self, x: Tensor, is_fused: bool, around: Surroundings) -> Tensor:
        if x.shape[0] <= self.weight_only_rows:
            linear = fused_byte_linear if is_fused else plain_fp8_linear
        else:
            linear = fused_dynamic_byte_linear if is_fused else dynamic_fp8_linear
        return linear(x, self.weight, self.scale, self.bias, around)


def quantize(model: Llama | GPT2, *, weight_only_rows: int = 8) -> Llama | GPT2:
    """Quantize the linear layers of the blocks in place; embeddings and head stay.

    A step of up to `weight_only_rows` tokens keeps its activations: it reads the same bytes, with less error and,
    on a GPU, faster. (Those of a CUDA graph are all its rows.) 0: activations are always float8. On a CPU the
    products are computed in float32 from the same float8 numbers. Raises ValueError on a GPU without float8
    (compute capability below 8.9), with another dtype than bfloat16 or sizes that are no multiples of 16 on one
    that has it, for weight_only_rows below 0, and naming the parameter for NaN or infinite weights.
    """
    if weight_only_rows < 0:
        raise ValueError(f"weight_only_rows {weight_only_rows} must not be negative")
    device = model.norm.weight.device
    if device.type == "cuda":
        check_gpu(model, torch.cuda.get_device_capability(device))
    replace_linears(model, lambda linear: FP8Linear(linear, weight_only_rows))
    return model


def check_gpu(model: Llama | GPT2, capability: tuple[int, int]) -> None:
    if capability < FIRST_CAPABILITY:
        raise ValueError(
            f"quantization=fp8 needs a GPU of compute capability 8.9 or more (Ada, Hopper), not {capability[0]}."
            f"{capability[1]}; use quantization=int8_weight_only"
        )
    if model.norm.weight.dtype != torch.bfloat16:
        raise ValueError(f"quantization=fp8 needs model.dtype=bfloat16 on a GPU, not {model.norm.weight.dtype}")
    for name, module in model.layers.named_modules():
        if isinstance(module, Linear) and (module.in_features % MULTIPLE or module.out_features % MULTIPLE):
            sizes = f"{module.out_features} × {module.in_features}"
            raise ValueError(f"quantization=fp8 needs multiples of {MULTIPLE}; layers.{name} is {sizes}")
