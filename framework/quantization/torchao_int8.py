"""A peer: torchao's int8 weight-only quantization of the same linear layers, through its tensor subclass."""

from __future__ import annotations

from framework.models.gpt2 import GPT2
from framework.models.layers import Linear
from framework.models.llama import Llama


def quantize(model: Llama | GPT2) -> Llama | GPT2:
    """Quantize the linear layers of the blocks in place, per output channel; embeddings and head stay.

    ImportError where the package torchao is missing.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise ImportError(
            "quantization=torchao_int8 needs the package torchao (pip install 'llm-serving-replay[torchao]'); "
            "quantization=int8_weight_only does the same without it"
        ) from error
    quantize_(model.layers, Int8WeightOnlyConfig())
    for module in model.layers.modules():
        if isinstance(module, Linear):
            module.fused_rows = 0  # torchao brings its own product
    return model
