"""One layer's KV cache: keys and values in the model's dtype, or in int8 with one scale per slot and key head.

Of an int8 cache every token attends to what is stored, its own key and value included: how it was scheduled (in a whole
prompt, a chunk, a decode step, or again after a preemption) changes its attention by rounding only. What `key_offset`
takes off all keys changes no attention: it adds the same number to all scores of a query, and softmax cancels that.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from framework.kernels.triton_support import jit, tl

# Half of float32's bytes (1.5% of the keys', with 128 channels), and no less exact: values are divided by the scale as
# rounded, so that their error stays half a step. A scale's largest and smallest numbers are keys of 8e6 and 8e-6.
SCALE_DTYPE = torch.float16
MIN_SCALE = 2.0**-24  # the smallest float16: heads of zeros are not 0 / 0


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The tensors of one layer. Slot = block * block_size + offset; a block's scales of one head lie side by side."""

    k: Tensor  # (num_slots, num_kv_heads, head_dim)
    v: Tensor
    scales: Tensor | None = None  # (2, num_kv_heads, num_slots) float16, of k and of v; None: both are as the model's
    key_offset: Tensor | None = None  # (num_kv_heads, head_dim) float32, taken off all keys before they become int8

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.k, self.v, self.scales) if tensor is not None)

    def store(self, slots: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (rows, num_kv_heads, head_dim) to slots (rows,) int64; returns them as they will be read."""
        if self.scales is None:
            self.k.index_copy_(0, slots, k)
            self.v.index_copy_(0, slots, v)
            return k, v
        kept = k if self.key_offset is None else k.float() - self.key_offset
        quantized, scale = quantize_heads(torch.stack((kept, v.to(kept.dtype))))
        self.k.index_copy_(0, slots, quantized[0])
        self.v.index_copy_(0, slots, quantized[1])
        self.scales.index_copy_(2, slots, scale.transpose(1, 2))
        k, v = dequantize_heads(quantized, scale, k.dtype)
        return k, v

    def read(self, slots: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values (rows, num_kv_heads, head_dim) of slots (rows,), int8 ones in `dtype`."""
        if self.scales is None:
            return self.k.index_select(0, slots), self.v.index_select(0, slots)
        k_scale, v_scale = self.scales.index_select(2, slots).transpose(1, 2)
        k = dequantize_heads(self.k.index_select(0, slots), k_scale, dtype)
        return k, dequantize_heads(self.v.index_select(0, slots), v_scale, dtype)

    def fill_randomly(self) -> None:
        """Numbers of unit variance in every slot."""
        for values in (self.k, self.v):
            if self.scales is None:
                values.normal_()
            else:
                values.random_(-127, 128)
        if self.scales is not None:
            self.scales.fill_(1 / 73.6)  # the standard deviation of whole numbers from -127 to 127

    @property
    def kernel_args(self) -> tuple[Tensor, Tensor, Tensor | None, int]:
        """k, v, scales, and how far apart the scales of two heads are."""
        return self.k, self.v, self.scales, 0 if self.scales is None else self.scales.shape[2]

    @property
    def written_args(self) -> tuple[Tensor | int | None, ...]:
        """The same for a kernel that stores keys, which needs their offset too."""
        return (*self.kernel_args, self.key_offset)


def quantize_heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """(…, head_dim) → int8 of the same shape and float16 scales (…): x ≈ int8 * scale.

    The error is at most scale / 2, and 2^-18 more in heads below 2^-7, whose scale has fewer digits. A NaN, or what is
    beyond 8e6, makes the scale NaN or infinite, so that nothing read of that head is a finite number.
    """
    scale = (x.abs().amax(dim=-1).float() * (1 / 127)).clamp(min=MIN_SCALE).to(SCALE_DTYPE)
    steps = x.float() * scale.float().reciprocal()[..., None]
    return steps.round().clamp(-127, 127).to(torch.int8), scale


def dequantize_heads(quantized: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of quantize_heads, rounded once; nothing wider than `dtype` is stored on the way."""
    output = torch.empty(quantized.shape, dtype=dtype, device=quantized.device)
    return torch.mul(quantized, scale.float()[..., None], out=output)


@jit
def less_offset(k, key_offset, kv_head, is_head, HEAD_DIM: tl.constexpr):
    """Keys k (num, HEAD_DIM) of heads kv_head (num, 1), less what LayerCache.key_offset takes off them."""
    if key_offset is not None:
        at = kv_head * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
        k = k.to(tl.float32) - tl.load(key_offset + at, is_head, other=0.0)
    return k


@jit
def store_heads(x, values, mask, scales, places, is_head):
    """Write heads x (num, HEAD_DIM) to pointers `values` under `mask`; returns them as they will be read.

    With `scales` they become what quantize_heads makes of them; the heads' own are at `places` (num, 1).
    """
    if scales is not None:
        x = x.to(tl.float32)
        bits = tl.abs(x).to(tl.int32, bitcast=True)  # in the order of the numbers, and NaN, which tl.max skips, on top
        largest = tl.max(bits, 1, keep_dims=True).to(tl.float32, bitcast=True)
        scale = largest * (1 / 127)
        scale = tl.where(scale < 2.0**-24, 2.0**-24, scale).to(tl.float16)
        tl.store(scales + places, scale, is_head)
        scale = scale.to(tl.float32)
        rounded = x * (1.0 / scale) + 1.5 * 2.0**23 - 1.5 * 2.0**23  # to the nearest whole number
        rounded = tl.minimum(tl.maximum(rounded, -127.0), 127.0)
        tl.store(values, rounded.to(tl.int8), mask)
        x = rounded * scale
    else:
        tl.store(values, x, mask)
    return x
