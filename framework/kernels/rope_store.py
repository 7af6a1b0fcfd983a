"""QK-norm, rope and the write to the paged KV cache after a fused QKV projection, in one launch; and in plain PyTorch.

It prepares the tokens of a prefill for FlashAttention; a decode step does the same inside paged_decode.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.kernels.layer_cache import LayerCache, less_offset, store_heads
from framework.kernels.triton_support import check_triton, jit, tl, triton

HEADS_PER_PROGRAM = 16


def plain_rope_store(
    qkv: Tensor,
    rope: Tensor | None,
    slots: Tensor | None,
    cache: LayerCache | None,
    *,
    num_kv_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_eps: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """q (rows, num_heads, head_dim), k and v (rows, num_kv_heads, head_dim) of qkv, ready for attention.

    qkv is (rows, num_heads + 2 num_kv_heads, head_dim). q_norm and k_norm (head_dim,) are RMSNorm weights per head;
    rope (rows, 2, head_dim) is cos and sin at each row's position, sin's first half negated. Row i's k and v are also
    written to slot slots[i] of the cache, if there is one, and returned as they will be read from there.
    Rounds once, at the end: everything between is float32 (float64 for float64). qkv is left as it was.
    """
    num_heads = qkv.shape[1] - 2 * num_kv_heads
    heads, v = qkv.split((num_heads + num_kv_heads, num_kv_heads), dim=1)
    x = heads.to(torch.promote_types(qkv.dtype, torch.float32))
    if q_norm is not None and k_norm is not None:
        q, k = x.split((num_heads, num_kv_heads), dim=1)
        size = q_norm.shape
        normed = F.rms_norm(q, size, q_norm.to(x.dtype), norm_eps), F.rms_norm(k, size, k_norm.to(x.dtype), norm_eps)
        x = torch.cat(normed, dim=1)
    if rope is not None:
        cos, sin = rope.to(x.dtype)[:, :, None].unbind(1)  # (rows, 1, head_dim)
        x = torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)  # q and k at once: half the launches
    q, k = x.to(qkv.dtype).split((num_heads, num_kv_heads), dim=1)
    if slots is not None and cache is not None:
        k, v = cache.store(slots.long(), k, v)
    return q, k, v


def rope_store(
    qkv: Tensor,
    rope: Tensor | None,
    slots: Tensor | None,
    cache: LayerCache | None,
    *,
    num_kv_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_eps: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """plain_rope_store as one Triton launch. q and k share new memory, v is a view of qkv; their rows are strided.

    With an int8 cache v shares that memory too. Everything must be contiguous, head_dim a power of two of at least 16.
    """
    check_triton("rope_store")
    check_qkv(qkv, num_kv_heads)
    num_rows, num_all_heads, head_dim = qkv.shape
    num_heads = num_all_heads - 2 * num_kv_heads
    q, k, v = qkv.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    stored = cache if slots is not None else None
    is_int8 = stored is not None and stored.scales is not None
    is_turned = is_int8 or rope is not None or q_norm is not None or k_norm is not None
    if is_turned:
        sizes = (num_heads, num_kv_heads, num_kv_heads if is_int8 else 0)
        turned = torch.empty((num_rows, sum(sizes), head_dim), dtype=qkv.dtype, device=qkv.device)
        q, k, stored_v = turned.split(sizes, dim=1)
        v = stored_v if is_int8 else v
    if num_rows and (is_turned or stored is not None):
        tile = min(HEADS_PER_PROGRAM, triton.next_power_of_2(num_heads))
        num_tiles = triton.cdiv(num_heads, tile) + (1 + (stored is not None)) * triton.cdiv(num_kv_heads, tile)
        written = (None, None, None, None, 0, None) if stored is None else (slots, *stored.written_args)
        _rope_store_kernel[(num_rows, num_tiles)](
            qkv, rope, q_norm, k_norm, norm_eps, turned if is_turned else None, *written,
            NUM_HEADS=num_heads, KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, TILE=tile, num_warps=4,
        )  # fmt: skip
    return q, k, v


def check_qkv(qkv: Tensor, num_kv_heads: int) -> None:
    """ValueError unless the Triton kernels take qkv (rows, num_heads + 2 num_kv_heads, head_dim)."""
    num_heads, head_dim = qkv.shape[1] - 2 * num_kv_heads, qkv.shape[2]
    if head_dim < 16 or head_dim & (head_dim - 1):
        raise ValueError(f"head_dim {head_dim} must be a power of two of at least 16")
    if num_heads <= 0 or num_heads % num_kv_heads:
        raise ValueError(f"{num_heads} query heads cannot share {num_kv_heads} key heads evenly")
    if not qkv.is_contiguous():
        raise ValueError(f"qkv must be contiguous, not strided by {qkv.stride()}")


@jit
def load_turned(heads, rope, norm, norm_eps, mask, HEAD_DIM: tl.constexpr):
    """Pointers to heads (num, 1) and to their row's cos and sin → normalised, turned heads (num, HEAD_DIM), float32.

    Channel c is turned together with c + HEAD_DIM / 2, which is loaded again: a cache hit, cheaper than a shuffle.
    """
    channels = tl.arange(0, HEAD_DIM)[None, :]
    partners = (channels + HEAD_DIM // 2) % HEAD_DIM
    x = tl.load(heads + channels, mask, other=0.0).to(tl.float32)
    factor = 1.0
    if norm is not None:
        factor = tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + norm_eps)[:, None]
        x = x * factor * tl.load(norm + channels).to(tl.float32)
    if rope is not None:
        partner = tl.load(heads + partners, mask, other=0.0).to(tl.float32)
        if norm is not None:
            partner = partner * factor * tl.load(norm + partners).to(tl.float32)
        cos = tl.load(rope + channels).to(tl.float32)
        sin = tl.load(rope + HEAD_DIM + channels).to(tl.float32)
        x = x * cos + partner * sin
    return x


@jit
def _rope_store_kernel(
    qkv, rope, q_norm, k_norm, norm_eps, turned, slots, k_cache, v_cache, scales, scale_stride,
    key_offset, NUM_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program (row, tile): TILE heads of one row, first the query heads' tiles, then the keys', then the values'."""
    Q_TILES: tl.constexpr = (NUM_HEADS + TILE - 1) // TILE
    KV_TILES: tl.constexpr = (KV_HEADS + TILE - 1) // TILE
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head = tl.arange(0, TILE)[:, None]
    channels = tl.arange(0, HEAD_DIM)[None, :]
    source = qkv + row * ((NUM_HEADS + 2 * KV_HEADS) * HEAD_DIM)
    if rope is not None:
        rope += row * (2 * HEAD_DIM)
    if turned is not None:
        turned += row * ((NUM_HEADS + (KV_HEADS if scales is None else 2 * KV_HEADS)) * HEAD_DIM)
    slot, num_stored = row, KV_HEADS
    scale_stride = tl.cast(scale_stride, tl.int64)
    if slots is not None:
        slot = tl.load(slots + row).to(tl.int64)
        num_stored = tl.where(slot >= 0, KV_HEADS, 0)
    if tile < Q_TILES:
        if turned is not None:
            head += tile * TILE
            q = load_turned(source + head * HEAD_DIM, rope, q_norm, norm_eps, head < NUM_HEADS, HEAD_DIM)
            tl.store(turned + head * HEAD_DIM + channels, q.to(turned.dtype.element_ty), head < NUM_HEADS)
    elif tile < Q_TILES + KV_TILES:
        head += (tile - Q_TILES) * TILE
        k = load_turned(source + (NUM_HEADS + head) * HEAD_DIM, rope, k_norm, norm_eps, head < KV_HEADS, HEAD_DIM)
        k = k.to(qkv.dtype.element_ty)
        if slots is not None:
            at, place = k_cache + (slot * KV_HEADS + head) * HEAD_DIM + channels, slot + head * scale_stride
            k = less_offset(k, key_offset, head, head < KV_HEADS, HEAD_DIM)
            k = store_heads(k, at, head < num_stored, scales, place, head < num_stored).to(qkv.dtype.element_ty)
        if turned is not None:
            tl.store(turned + (NUM_HEADS + head) * HEAD_DIM + channels, k, head < KV_HEADS)
    elif slots is not None:
        head += (tile - Q_TILES - KV_TILES) * TILE
        v = tl.load(source + (NUM_HEADS + KV_HEADS + head) * HEAD_DIM + channels, head < KV_HEADS)
        at, place = v_cache + (slot * KV_HEADS + head) * HEAD_DIM + channels, slot + (KV_HEADS + head) * scale_stride
        stored = store_heads(v, at, head < num_stored, scales, place, head < num_stored)
        if scales is not None:
            turned += (NUM_HEADS + KV_HEADS) * HEAD_DIM
            tl.store(turned + head * HEAD_DIM + channels, stored.to(turned.dtype.element_ty), head < KV_HEADS)
