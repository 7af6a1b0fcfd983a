"""One adapter folded into the weights, for all requests whichever they name: as fast as the base model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from framework.lora.adapter_file import Extras
from framework.lora.adapters import AdapterSource
from framework.lora.layout import Layer, Layout, make_layout
from framework.models.gpt2 import GPT2
from framework.models.layers import Linear, TokenEmbedding
from framework.models.llama import Llama


def merge_adapter(
    model: Llama | GPT2, *, adapters: Callable[[], AdapterSource], adapter_id: str, targets: list[str] | None = None
) -> Llama | GPT2:
    """Fold the adapter into the weights, in place: whole tables, B @ A, and DoRA's magnitudes.

    A head that is the embedding table gets a copy of its own where only one of them changes. Raises ValueError for an
    adapter that cannot be loaded, and for weights that are not in floating point.
    """
    layout = make_layout(model, targets)
    rows, extras = adapters().load_whole(adapter_id, layout)
    if model.config.tie_embeddings and changes_a_table(layout, extras):
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
        model.config = replace(model.config, tie_embeddings=False)
    for name, table in extras.tables.items():
        weight_of(layout.outer[name]).copy_(table)
    for projection in layout.projections:
        weight = weight_of(projection.linear)
        if projection.is_lookup:
            weight = weight.T  # (out_features, in_features), as the others
        parts = zip(weight.split(projection.sizes), projection.parts(rows), strict=True)
        for part, (name, is_changed, a, b) in parts:
            if is_changed:
                merge_part(part, b.T @ a, extras.magnitudes.get(name))
    return model


def merge_part(weight: Tensor, change: Tensor, magnitude: Tensor | None) -> None:
    """weight (out_features, in_features) += change; with DoRA (arXiv:2402.09353) its rows have length `magnitude`."""
    if magnitude is None:
        weight += change.to(weight)
    else:
        merged = weight.float() + change.to(weight.device)
        weight.copy_(merged * (magnitude.to(merged) / merged.norm(dim=1))[:, None])


def changes_a_table(layout: Layout, extras: Extras) -> bool:
    return bool(extras.tables) or any(projection.linear in layout.outer.values() for projection in layout.projections)


def weight_of(layer: Layer) -> Tensor:
    """The layer's weights in floating point; ValueError for others."""
    if type(layer) not in (Linear, TokenEmbedding) or type(layer.weight) is not nn.Parameter:
        raise ValueError("lora=merged changes weights in floating point: it needs quantization=none")
    return layer.weight
