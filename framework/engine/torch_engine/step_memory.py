"""What a step needs beside weights and KV cache, from shapes: the model runs without numbers, all that lives counts.

So it holds for any quantization: for weights that are made floats, for activations that become bytes, for a quantized
head. The plain way of computing is counted, which takes no less than fused kernels and compiled blocks do.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from framework.engine.torch_engine.compilation import configure_model
from framework.engine.torch_engine.mixed import SIZES
from framework.engine.torch_engine.options import EngineOptions
from framework.engine.torch_engine.sampling import Sampling, sample
from framework.kernels.attention import Heads
from framework.kernels.decode_step import tokens_or_none
from framework.kernels.layer_cache import LayerCache
from framework.kernels.rope_store import plain_rope_store
from framework.models.gpt2 import GPT2
from framework.models.layers import SurroundedLinear, TokenEmbedding
from framework.models.llama import Llama

MOST_ROWS, MOST_SEQS = 8192, 256  # of a step that the automatic size of the cache leaves room for


def needed_bytes(
    model: Llama | GPT2,
    options: EngineOptions,
    sampling: Sampling,
    num_rows: int = MOST_ROWS,
    num_seqs: int = MOST_SEQS,
) -> int:
    """Bytes of steps of up to `num_rows` tokens and `num_seqs` sequences, beside weights, adapter slots and KV cache.

    Captured graphs keep memory of their own: the decode steps' and the mixed steps', with the hidden states of each
    size. What adapters gather and what attention reads of the cache is not counted: the headroom is for these.
    """
    num_bytes = step_bytes(model, sampling, num_rows, num_seqs)
    if options.cuda_graphs:
        sizes = [size for size in SIZES if size < num_rows] + [min(num_rows, SIZES[-1])]
        num_bytes += step_bytes(model, sampling, num_seqs, num_seqs) + step_bytes(model, sampling, sizes[-1], 0)
        num_bytes += sum(sizes) * model.config.hidden_size * model.norm.weight.element_size()
    return num_bytes


@torch.inference_mode(mode=False)
@torch.no_grad()
def step_bytes(model: Llama | GPT2, sampling: Sampling, num_rows: int, num_seqs: int) -> int:
    """The most that tensors of one step take at a time: from its token ids to the tokens of `num_seqs` (0: none).

    Leaves the model without fused kernels and compiled blocks.
    """
    configure_model(model, fused=False, compiled={})
    step = _Step(model, sampling)
    tensors = {name: tensor.to("meta") for name, tensor in (*step.named_parameters(), *step.named_buffers())}
    rows = torch.zeros(num_rows, dtype=torch.int64, device="meta")
    with _adapters_stood_in(model), _LiveBytes([*tensors.values(), rows]) as live:
        torch.func.functional_call(step, tensors, (rows, num_seqs))
    return live.most


class _Step(nn.Module):
    def __init__(self, model: Llama | GPT2, sampling: Sampling) -> None:
        super().__init__()
        self.model, self.sampling = model, sampling

    def forward(self, rows: Tensor, num_seqs: int) -> None:
        hidden = self.model(rows, rows, _attend)
        if num_seqs:
            chosen = self.sampling
            logits = self.model.logits(hidden[:num_seqs].clone())
            tokens_or_none(logits, sample(logits, chosen.temperature, chosen.top_k, chosen.top_p, None))


def _attend(
    qkv: Tensor, rope: Tensor | None, cache: LayerCache | None, window: int | None, **heads: Unpack[Heads]
) -> Tensor:
    q, _, _ = plain_rope_store(qkv, rope, None, None, **heads)
    return torch.empty_like(q).flatten(1)


@contextmanager
def _adapters_stood_in(model: Llama | GPT2) -> Iterator[None]:
    """What adapters add to each layer, without their weights."""
    dtype = model.norm.weight.dtype
    taken = {}
    for module in model.modules():
        if isinstance(module, SurroundedLinear | TokenEmbedding) and module.lora is not None:
            taken[module] = module.lora
            module.lora = lambda x, size=module.out_features: x.new_empty((len(x), size), dtype=dtype)
    try:
        yield
    finally:
        for module, lora in taken.items():
            module.lora = lora


class _LiveBytes(TorchDispatchMode):
    """Counts the storages that are made inside, until nothing refers to them; `most` is their largest sum in bytes."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = {_address(tensor) for tensor in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _address(tensor) not in self._known:
                storage = tensor.untyped_storage()
                self._known.add(_address(tensor))
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._free, _address(tensor), storage.nbytes())
        return result

    def _free(self, address: int, num_bytes: int) -> None:
        self._known.remove(address)
        self.now -= num_bytes


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
