"""W8A8 (as in LLM.int8(), arXiv:2208.07339, without its outliers): int8 weights per channel, activations per token."""

from __future__ import annotations

from torch import Tensor

from framework.kernels.byte_linear import fused_dynamic_byte_linear
from framework.kernels.int8 import dynamic_int8_linear, quantize_int8
from framework.kernels.linear import Surroundings
from framework.models.gpt2 import GPT2
from framework.models.layers import Linear
from framework.models.llama import Llama
from framework.quantization.int8_weight_only import Int8Linear
from framework.quantization.replace import frozen, replace_linears


class DynamicInt8Linear(Int8Linear):
    """Calls of up to `weight_only_rows` rows keep their activations as they are."""

    fused_rows = 2**15

    def __init__(self, linear: Linear, weight_only_rows: int) -> None:
        weight, scale = map(frozen, quantize_int8(linear.weight))
        super().__init__(weight, scale, linear.bias, group_size=None)
        self.weight_only_rows = weight_only_rows

    def compute(self, x: Tensor, is_fused: bool, around: Surroundings) -> Tensor:
        if x.shape[0] <= self.weight_only_rows:
            return super().compute(x, is_fused, around)
        linear = fused_dynamic_byte_linear if is_fused else dynamic_int8_linear
        return linear(x, self.weight, self.scale, self.bias, around)


def quantize(model: Llama | GPT2, *, weight_only_rows: int = 16) -> Llama | GPT2:
    """Quantize the linear layers of the blocks in place; embeddings and head stay.

    A step of up to `weight_only_rows` tokens is computed as int8_weight_only does, on every device: it reads the same
    bytes, with less error and, on a GPU, faster. (Those of a CUDA graph are all its rows: a prompt has at least 16.)
    0: activations are always int8. Raises ValueError naming the parameter for NaN or infinite weights.
    """
    if weight_only_rows < 0:
        raise ValueError(f"weight_only_rows {weight_only_rows} must not be negative")
    replace_linears(model, lambda linear: DynamicInt8Linear(linear, weight_only_rows))
    return model
