"""Where an adapter's numbers lie: one row per rank, in which every layer has a piece of A and a piece of B.

So an adapter of rank r is r rows in one piece, whatever rank a slot has room for, and one copy moves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from framework.models.gpt2 import CHECKPOINT_MODULES as GPT2_MODULES
from framework.models.gpt2 import GPT2
from framework.models.layers import SurroundedLinear, TokenEmbedding
from framework.models.llama import CHECKPOINT_MODULES as LLAMA_MODULES
from framework.models.llama import Llama

HEAD = "lm_head"
ALIGNMENT = 16  # numbers: a piece begins where vector loads may

Layer = SurroundedLinear | TokenEmbedding


@dataclass(frozen=True, slots=True)
class Projection:
    """A layer of the model, which may be several of the checkpoint's: its parts, one after the other.

    An embedding is the product of its table with a token's one: in_features are the vocabulary.
    """

    linear: Layer
    names: tuple[str, ...]  # the checkpoint's, such as layers.0.self_attn.q_proj
    sizes: tuple[int, ...]  # output features of each part
    has_adapter: tuple[bool, ...]  # which parts the adapters change
    start: int  # of its A in a row; its B begins at `middle`
    middle: int

    @property
    def is_lookup(self) -> bool:
        return isinstance(self.linear, TokenEmbedding)

    def factors(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Views of rows (…, rank, width): A (…, rank, parts, in_features) and B transposed (…, rank, out_features)."""
        num_parts, in_features = len(self.sizes), self.linear.in_features
        a = rows[..., self.start : self.start + num_parts * in_features].unflatten(-1, (num_parts, in_features))
        return a, rows[..., self.middle : self.middle + sum(self.sizes)]

    def parts(self, rows: Tensor) -> Iterator[tuple[str, bool, Tensor, Tensor]]:
        """Name, whether adapters change it, A (rank, in_features) and B transposed (rank, its output features)."""
        a, b = self.factors(rows)
        ends = accumulate(self.sizes)
        for part, (name, is_changed, end) in enumerate(zip(self.names, self.has_adapter, ends, strict=True)):
            yield name, is_changed, a[:, part], b[:, end - self.sizes[part] : end]


@dataclass(frozen=True, slots=True)
class Layout:
    """The pieces of a row of `width` numbers. The checkpoint's names have `prefix` in front, but for the head's."""

    projections: tuple[Projection, ...]
    width: int
    prefix: str
    checkpoint: str | None  # folder of the model's weights; None: random ones
    outer: dict[str, Layer]  # by the checkpoint's names, those beside the blocks, whether adapters change them or not

    def is_lookup(self, name: str) -> bool:
        return isinstance(self.outer.get(name), TokenEmbedding)

    def full_name(self, name: str) -> str:
        """What the checkpoint calls the layer `name`."""
        return name if name == HEAD else self.prefix + name

    def parts(self, rows: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The checkpoint's names that adapters change → views of A (rank, in) and B transposed (rank, out)."""
        every = (part for projection in self.projections for part in projection.parts(rows))
        return {name: (a, b) for name, is_changed, a, b in every if is_changed}

    def clear_others(self, rows: Tensor) -> None:
        """Zeros for the parts that adapters leave alone, though they share a linear layer with one that they change."""
        for projection in self.projections:
            for _, is_changed, a, b in projection.parts(rows):
                if not is_changed:
                    a.zero_()
                    b.zero_()


def make_layout(model: Llama | GPT2, targets: Sequence[str] | None) -> Layout:
    """The layout for adapters on `targets`: ends of the checkpoint's names, as PEFT's target_modules.

    None are the linear layers of the blocks. Raises ValueError for a target that names none of the model's layers.
    """
    projections: list[Projection] = []
    width, outer = 0, outer_layers(model)
    layers = list(linear_layers(model))
    if targets is not None:
        layers += [(layer, (name,), (layer.out_features,)) for name, layer in outer.items()]
    for linear, names, sizes in layers:
        has_adapter = tuple(targets is None or any(is_end(target, name) for target in targets) for name in names)
        if any(has_adapter):
            middle = aligned(width + len(sizes) * linear.in_features)
            projections.append(Projection(linear, names, sizes, has_adapter, width, middle))
            width = aligned(middle + sum(sizes))
    every = [name for _, names, _ in layers for name in names]
    unknown = [target for target in targets or () if not any(is_end(target, name) for name in every)]
    if unknown or not projections:
        inner = ", ".join(dict.fromkeys(map(module_name, every)))
        raise ValueError(f"lora.targets names {unknown or 'nothing'}; the model has {inner} (null: all in the blocks)")
    return Layout(tuple(projections), width, model.prefix, model.config.checkpoint, outer)


def module_name(name: str) -> str:
    """A layer's name without the number of its block."""
    return name.split(".", 2)[-1]


def outer_layers(model: Llama | GPT2) -> dict[str, Layer]:
    """The layers beside the blocks by the checkpoint's names: the vocabulary head, and the embedding if in floats."""
    layers: dict[str, Layer] = {HEAD: model.lm_head}
    if isinstance(model.embed_tokens, TokenEmbedding):
        layers[model.embedding] = model.embed_tokens
    return layers


def is_end(target: str, name: str) -> bool:
    """Whether `name` ends with the whole components of `target`."""
    return f".{name}".endswith(f".{target}")


def linear_layers(model: Llama | GPT2) -> Iterator[tuple[Layer, tuple[str, ...], tuple[int, ...]]]:
    """The blocks' linear layers, each with the checkpoint's names of its parts and their output features."""
    for number, block in enumerate(model.layers):
        for module, linear in block.named_children():
            if not isinstance(linear, SurroundedLinear):
                continue
            if isinstance(model, GPT2):
                yield linear, (f"h.{number}.{GPT2_MODULES[module]}",), (linear.out_features,)
                continue
            names = tuple(f"layers.{number}.{name}" for name in LLAMA_MODULES[module])
            halves = (linear.out_features // len(names),) * len(names)
            yield linear, names, model.config.qkv_sizes if module == "qkv_proj" else halves


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
