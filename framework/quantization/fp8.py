"""FP8: float8_e4m3fn weights with a scale per output channel, activations with one per token (arXiv:2209.05433)."""

from __future__ import annotations

import torch
from torch import Tensor

from framework.kernels.linear import Surroundings, surrounded
from framework.models.gpt2 import GPT2
from framework.models.layers import Linear, SurroundedLinear
from framework.models.llama import Llama
from framework.quantization.replace import frozen, replace_linears

FP8 = torch.float8_e4m3fn
MAX_FP8 = torch.finfo(FP8).max  # 448
FIRST_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
MULTIPLE = 16  # of in_features and out_features, for torch._scaled_mm


class FP8Linear(SurroundedLinear):
    """`weight` (out_features, in_features) float8, `scale` (out_features, 1) float32."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.scale = map(frozen, quantize_fp8(linear.weight))
        self.bias = linear.bias

    def compute(self, x: Tensor, is_fused: bool, around: Surroundings) -> Tensor:
        def product(normed: Tensor) -> Tensor:
            y = fp8_matmul(*quantize_fp8(normed), self.weight, self.scale, x.dtype)
            return y if self.bias is None else y + self.bias

        return surrounded(product, x, around)


def quantize(model: Llama | GPT2) -> Llama | GPT2:
    """Quantize the linear layers of the blocks in place; embeddings and head stay.

    On a CPU the products are computed in float32 from the same float8 numbers. Raises ValueError on a GPU without
    float8 (compute capability below 8.9), with another dtype than bfloat16 or sizes that are no multiples of 16 on one
    that has it, and naming the parameter for NaN or infinite weights.
    """
    device = model.norm.weight.device
    if device.type == "cuda":
        check_gpu(model, torch.cuda.get_device_capability(device))
    replace_linears(model, FP8Linear)
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


def quantize_fp8(values: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) → float8_e4m3fn and float32 scales (rows, 1): each row's largest magnitude becomes 448."""
    values = values.float()
    scale = (values.abs().amax(dim=1, keepdim=True) / MAX_FP8).clamp(min=torch.finfo(torch.float32).tiny)
    return (values / scale).clamp(-MAX_FP8, MAX_FP8).to(FP8), scale


def fp8_matmul(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """(x * x_scale) @ (weight * weight_scale).T, float8 with a scale per row, in `dtype`; sums are float32."""
    if x.device.type == "cuda":
        return torch._scaled_mm(x, weight.T, scale_a=x_scale, scale_b=weight_scale.T.contiguous(), out_dtype=dtype)
    return (x.float() @ weight.float().T * x_scale * weight_scale.T).to(dtype)
