"""What a model's tensors really take on the device, by what they are for."""

from __future__ import annotations

from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from framework.models.gpt2 import GPT2
from framework.models.layers import PagedAttention, SurroundedLinear
from framework.models.llama import Llama

SCALES = ("scale", "_state")


def footprint(model: Llama | GPT2) -> dict[str, int]:
    """Bytes of `embeddings`, `head`, `weights` of the blocks' linear layers, `scales` and `other`; and their `total`.

    Storages, each counted once: a tied head is part of the embeddings, and a view counts as what it keeps alive. The
    KV cache is not counted, tables such as rope's are (`other`).
    """
    sizes = dict.fromkeys(("embeddings", "head", "weights", "scales", "other"), 0)
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            for storage in storages(tensor):
                if storage.data_ptr() not in seen:
                    seen.add(storage.data_ptr())
                    sizes[kind(path, module, name)] += storage.nbytes()
    return sizes | {"total": sum(sizes.values())}


def cache_footprint(model: Llama | GPT2) -> int:
    """Bytes of the KV cache that is attached to the model, whatever an engine keeps it as."""
    caches = [module.cache for module in model.modules() if isinstance(module, PagedAttention)]
    parts = [part for cache in caches if cache is not None for part in (cache.k, cache.v, cache.scales)]
    return sum(part.untyped_storage().nbytes() for part in parts if part is not None)


def storages(tensor: Tensor) -> list[UntypedStorage]:
    return [part.untyped_storage() for part in plain_tensors(tensor)]


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """The tensor, or those that a subclass such as torchao's is made of."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return [part for name in names for part in plain_tensors(getattr(tensor, name))]
    return [tensor]


def kind(path: str, module: nn.Module, name: str) -> str:
    if name.endswith(SCALES):
        return "scales"
    if path.startswith("embed_"):
        return "embeddings"
    if path == "lm_head":
        return "head"
    return "weights" if isinstance(module, SurroundedLinear) else "other"
