"""One adapter folded into the weights, for all requests whichever they name: as fast as the base model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from framework.lora.adapters import AdapterSource
from framework.lora.layout import make_layout
from framework.models.gpt2 import GPT2
from framework.models.layers import Linear
from framework.models.llama import Llama


def merge_adapter(
    model: Llama | GPT2, *, adapters: Callable[[], AdapterSource], adapter_id: str, targets: list[str] | None = None
) -> Llama | GPT2:
    """Add B @ A of the adapter to the weights, in place.

    Raises ValueError for an adapter that cannot be loaded, and for weights that are not in floating point.
    """
    source, layout = adapters(), make_layout(model, targets)
    source.check(adapter_id, layout)
    rows = source.load(adapter_id, layout, torch.float32)
    for projection in layout.projections:
        linear = projection.linear
        if type(linear) is not Linear or type(linear.weight) is not nn.Parameter:
            raise ValueError("lora=merged changes weights in floating point: it needs quantization=none")
        for weight, (_, _, a, b) in zip(linear.weight.split(projection.sizes), projection.parts(rows), strict=True):
            weight += (b.T @ a).to(weight)
    return model
