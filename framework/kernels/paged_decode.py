"""One decode step of one layer's attention in one launch: QK-norm, rope, the KV cache write and attention over it.

Programs share a sequence (split-KV) by ranges of its length as read on the device, so that a CUDA graph may replay with
other lengths; the one that finishes last adds the parts up. The new token's k and v never come from the cache.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.kernels.rope_store import check_qkv, check_triton, load_turned, plain_rope_store

try:
    import triton
    import triton.language as tl
except ImportError:  # no wheel for this platform: plain_paged_decode still works
    triton = None


def jit(kernel):
    return triton.jit(kernel, do_not_specialize=["table_stride", "num_splits", "min_tiles"]) if triton else kernel


MAX_COUNTERS = 2**18
MAX_SPLITS = 32
PROGRAMS_PER_SM = 4


@dataclass(frozen=True, slots=True)
class DecodeTiles:
    """How one launch cuts its work; block_keys and min_keys are powers of two.

    block_keys cache slots per iteration, min_keys of them at least per split; `prefetch` brings a split's first ones to
    L2 before the previous kernel is done, `pdl` lets the launches overlap.
    """

    block_keys: int = 64
    num_warps: int = 4
    num_stages: int = 3
    min_keys: int = 64
    prefetch: bool = True
    pdl: bool = True


def plain_paged_decode(
    qkv: Tensor, rope: Tensor | None, tables: Tensor, seats: Tensor, context_lens: Tensor, padding: Tensor,
    k_cache: Tensor, v_cache: Tensor, *, num_kv_heads: int, block_size: int,
    q_norm: Tensor | None = None, k_norm: Tensor | None = None, norm_eps: float = 0.0, num_splits: int | None = None,
) -> Tensor:  # fmt: skip
    """Attention of one new token per row over its whole context, (rows, num_heads * head_dim).

    qkv, rope, norms and caches are those of plain_rope_store; slot = block * block_size + offset. Row i's blocks are
    tables[seats[i]] of tables (num_seats, max_blocks). It has context_lens[i] slots, the last being the new token's,
    which is written there; the first padding[i] slots are not attended to, save by themselves. Rows of length 0 are
    empty: zeros, and nothing is written. All int32, (rows,). Scores are scaled by head_dim ** -0.5. num_splits is
    paged_decode's.
    """
    lengths = context_lens.tolist()
    outputs, all_slots = [], []
    for seat, length in zip(seats.tolist(), lengths, strict=True):
        places = torch.arange(length, device=qkv.device)
        blocks = tables[seat].long()[places // block_size] if length else places
        all_slots.append(blocks * block_size + places % block_size)
    filled = context_lens > 0
    new_slots = torch.tensor(
        [int(slots[-1]) for slots in all_slots if len(slots)], dtype=torch.int64, device=qkv.device
    )
    q, k, v = plain_rope_store(
        qkv, rope, None, None, None, num_kv_heads=num_kv_heads, q_norm=q_norm, k_norm=k_norm, norm_eps=norm_eps
    )
    k_cache.index_copy_(0, new_slots, k[filled])
    v_cache.index_copy_(0, new_slots, v[filled])
    for row, slots in enumerate(all_slots):
        if not len(slots):
            outputs.append(torch.zeros_like(q[row]))
            continue
        seen = slots[min(int(padding[row]), len(slots) - 1) :]
        keys, values = k_cache[seen].transpose(0, 1)[None], v_cache[seen].transpose(0, 1)[None]
        query, is_grouped = q[row][None, :, None], q.shape[1] != num_kv_heads
        outputs.append(F.scaled_dot_product_attention(query, keys, values, enable_gqa=is_grouped)[0, :, 0])
    return torch.stack(outputs).flatten(1)


def paged_decode(
    qkv: Tensor, rope: Tensor | None, tables: Tensor, seats: Tensor, context_lens: Tensor, padding: Tensor,
    k_cache: Tensor, v_cache: Tensor, *, num_kv_heads: int, block_size: int,
    q_norm: Tensor | None = None, k_norm: Tensor | None = None, norm_eps: float = 0.0, num_splits: int | None = None,
    tiles: DecodeTiles | None = None,
) -> Tensor:  # fmt: skip
    """plain_paged_decode as one Triton launch: num_splits programs (None: choose_splits) per row and key head.

    Everything must be contiguous, head_dim a power of two of at least 16. With overlapping launches tables, seats and
    context_lens are read before the kernels ahead are done: an ordinary launch must follow what writes them. Launches
    share counters, so they must be of one stream.
    """
    check_triton("paged_decode")
    check_qkv(qkv, num_kv_heads)
    num_rows, num_all_heads, head_dim = qkv.shape
    num_heads = num_all_heads - 2 * num_kv_heads
    group = num_heads // num_kv_heads
    num_sms, has_pdl = _device_facts(qkv.device)
    if tiles is None:
        tiles = choose_tiles(num_rows, num_kv_heads, num_sms)
    if num_splits is None:
        num_splits = choose_splits(num_rows, num_kv_heads, num_sms)
    if num_rows * num_kv_heads > MAX_COUNTERS:
        raise ValueError(f"{num_rows} rows of {num_kv_heads} key heads are more than {MAX_COUNTERS} counters")
    output = torch.empty((num_rows, num_heads * head_dim), dtype=qkv.dtype, device=qkv.device)
    parts = logs = None
    if num_splits > 1:
        parts = torch.empty((num_rows, num_kv_heads, num_splits, group, head_dim), device=qkv.device)
        logs = torch.empty((num_rows, num_kv_heads, num_splits, group), device=qkv.device)
    pdl = tiles.pdl and has_pdl
    if num_rows:
        _paged_decode_kernel[(num_kv_heads, num_rows, num_splits)](
            qkv, rope, q_norm, k_norm, norm_eps, tables, seats, context_lens, padding, k_cache, v_cache,
            output, parts, logs, _counters(qkv.device), tables.stride(0), num_splits,
            max(1, tiles.min_keys // tiles.block_keys), head_dim**-0.5 / math.log(2),
            KV_HEADS=num_kv_heads, GROUP=group, HEAD_DIM=head_dim, BLOCK_SIZE=block_size, BLOCK_KEYS=tiles.block_keys,
            PREFETCH=tiles.prefetch and has_pdl, PDL=pdl,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages, **({"launch_pdl": True} if pdl else {}),
        )  # fmt: skip
    return output


def choose_splits(num_rows: int, num_kv_heads: int, num_sms: int) -> int:
    """How many parts a long row has at most; splits that a short row has no use for leave at once.

    They are not free: where rows alone fill the device, none is split.
    """
    num_programs = num_rows * num_kv_heads
    if num_programs < num_sms:
        return MAX_SPLITS
    return 8 if num_programs < PROGRAMS_PER_SM * num_sms else 1


def choose_tiles(num_rows: int, num_kv_heads: int, num_sms: int) -> DecodeTiles:
    """Short splits while programs are few."""
    num_programs = num_rows * num_kv_heads
    if num_programs < num_sms:
        return DecodeTiles(block_keys=128, num_stages=2, min_keys=128)
    if num_programs < PROGRAMS_PER_SM * num_sms:
        return DecodeTiles(num_warps=2, min_keys=512)
    return DecodeTiles()


@functools.cache
def _device_facts(device: torch.device) -> tuple[int, bool]:
    """Number of multiprocessors (1 for Triton's interpreter), and whether launches can overlap."""
    if device.type != "cuda":
        return 1, False
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, torch.version.cuda is not None and properties.major >= 9


@functools.cache
def _counters(device: torch.device) -> Tensor:
    """How many splits of each row and key head are done; zero between launches."""
    return torch.zeros(MAX_COUNTERS, dtype=torch.int32, device=device)


@jit
def _paged_decode_kernel(
    qkv, rope, q_norm, k_norm, norm_eps, tables, seats, context_lens, padding, k_cache, v_cache,
    output, parts, logs, counters, table_stride, num_splits, min_tiles, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_KEYS: tl.constexpr, PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (key head, row, split): the query heads of one key head over a range of the row's old slots.

    Split 0 always has work, so the new token is its. `scale` includes 1 / ln 2: exponents are to base 2.
    """
    kv_head, row, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    length = tl.load(context_lens + row)
    num_old = tl.maximum(length - 1, 0)
    num_tiles = tl.cdiv(num_old, BLOCK_KEYS)
    num_parts = tl.maximum(tl.minimum(num_tiles // min_tiles, num_splits), 1)
    split_tiles = tl.maximum(tl.cdiv(num_tiles, num_parts), 1)
    num_parts = tl.maximum(tl.cdiv(num_tiles, split_tiles), 1)
    start = split * split_tiles * BLOCK_KEYS
    end = tl.minimum(start + split_tiles * BLOCK_KEYS, num_old)
    if split < num_parts:
        table = tables + tl.load(seats + row, length > 0, other=0).to(tl.int64) * table_stride
        k_head, v_head = k_cache + kv_head * HEAD_DIM, v_cache + kv_head * HEAD_DIM
        slots = load_slots(table, start, end, BLOCK_SIZE, BLOCK_KEYS)
        if PREFETCH:
            prefetch(k_head, slots, KV_HEADS * HEAD_DIM, HEAD_DIM)
            prefetch(v_head, slots, KV_HEADS * HEAD_DIM, HEAD_DIM)
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()  # qkv is read and anything is written only below
        q, top, total, mean = new_token(
            qkv, rope, q_norm, k_norm, norm_eps, table, k_head, v_head, row, kv_head, length, split, scale,
            KV_HEADS, GROUP, HEAD_DIM, BLOCK_SIZE,
        )  # fmt: skip
        num_hidden = tl.load(padding + row)
        top, total, mean = old_tokens(
            q, top, total, mean, table, k_head, v_head, slots, start, end, num_hidden, scale,
            KV_HEADS * HEAD_DIM, HEAD_DIM, BLOCK_SIZE, BLOCK_KEYS,
        )  # fmt: skip
        finish(
            top, total, mean, output, parts, logs, counters, row * KV_HEADS + kv_head,
            split, num_splits, num_parts, length, GROUP, HEAD_DIM,
        )  # fmt: skip


@jit
def load_slots(table, start, end, BLOCK_SIZE: tl.constexpr, BLOCK_KEYS: tl.constexpr):
    """Cache slots of the sequence's places start … start + BLOCK_KEYS, (BLOCK_KEYS,) int64; any beyond `end`."""
    places = start + tl.arange(0, BLOCK_KEYS)
    if BLOCK_SIZE % BLOCK_KEYS == 0:  # one block holds them all
        block = tl.load(table + start // BLOCK_SIZE, start < end, other=0).to(tl.int64)
        return block * BLOCK_SIZE + (start % BLOCK_SIZE + tl.arange(0, BLOCK_KEYS))
    blocks = tl.load(table + places // BLOCK_SIZE, places < end, other=0).to(tl.int64)
    return blocks * BLOCK_SIZE + places % BLOCK_SIZE


@jit
def prefetch(head, slots, STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Bring the slots' keys or values of one head to L2."""
    LINE: tl.constexpr = 128 // (head.dtype.element_ty.primitive_bitwidth // 8)
    NUM_LINES: tl.constexpr = (HEAD_DIM + LINE - 1) // LINE
    pointers = head + slots[:, None] * STRIDE + tl.arange(0, NUM_LINES)[None, :] * LINE
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers.to(tl.int64)], tl.int32, is_pure=False, pack=1
    )


@jit
def new_token(
    qkv, rope, q_norm, k_norm, norm_eps, table, k_head, v_head, row, kv_head, length, split, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """q and the softmax's running maximum, sum and weighted values; split 0 stores the new token and begins with it."""
    PADDED: tl.constexpr = max(16, triton.next_power_of_2(GROUP))  # rows of a tensor core's tile
    channels = tl.arange(0, HEAD_DIM)[None, :]
    head = tl.arange(0, PADDED)[:, None]
    source = qkv + row * ((GROUP + 2) * KV_HEADS * HEAD_DIM)
    if rope is not None:
        rope += row * (2 * HEAD_DIM)
    q = load_turned(source + (kv_head * GROUP + head) * HEAD_DIM, rope, q_norm, norm_eps, head < GROUP, HEAD_DIM)
    q = q.to(qkv.dtype.element_ty)
    top = tl.full([PADDED], -1e30, tl.float32)  # finite, so that a tile of padding does no harm
    total = tl.zeros([PADDED], tl.float32)
    mean = tl.zeros([PADDED, HEAD_DIM], tl.float32)
    if split == 0:
        is_real = channels < length * HEAD_DIM  # none of an empty row's
        k_at = source + (GROUP * KV_HEADS + kv_head + tl.zeros([1, 1], tl.int32)) * HEAD_DIM
        k = load_turned(k_at, rope, k_norm, norm_eps, is_real, HEAD_DIM).to(q.dtype)
        v = tl.load(k_at + KV_HEADS * HEAD_DIM + channels, is_real, other=0.0)
        place = tl.maximum(length - 1, 0)
        block = tl.load(table + place // BLOCK_SIZE, length > 0, other=0).to(tl.int64)
        at = (block * BLOCK_SIZE + place % BLOCK_SIZE) * (KV_HEADS * HEAD_DIM) + channels
        tl.store(k_head + at, k, is_real)
        tl.store(v_head + at, v, is_real)
        top = tl.sum(q.to(tl.float32) * k.to(tl.float32), 1) * scale
        total += 1.0
        mean += v.to(tl.float32)
    return q, top, total, mean


@jit
def old_tokens(
    q, top, total, mean, table, k_head, v_head, slots, start, end, num_hidden, scale,
    STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Online softmax (arXiv:2205.14135) over places start … end; `slots` are those of the first BLOCK_KEYS."""
    channels = tl.arange(0, HEAD_DIM)[None, :]
    for first in range(start, end, BLOCK_KEYS):
        next_slots = load_slots(table, first + BLOCK_KEYS, end, BLOCK_SIZE, BLOCK_KEYS)  # a tile early
        places = first + tl.arange(0, BLOCK_KEYS)
        at = slots[:, None] * STRIDE + channels
        k = tl.load(k_head + at, (places < end)[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        is_seen = (places >= num_hidden) & (places < end)
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        v = tl.load(v_head + at, (places < end)[:, None], other=0.0)
        total = total * shrink + tl.sum(weights, 1)
        mean = tl.dot(weights.to(v.dtype), v, mean * shrink[:, None], input_precision="ieee")
        top, slots = new_top, next_slots
    return top, total, mean


@jit
def finish(
    top, total, mean, output, parts, logs, counters, place, split, num_splits, num_parts, length,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Store the output, or this split's part of it, and then the output if that was the last part to arrive."""
    total = tl.where(total > 0, total, 1.0)  # 0 if all of the split is padding: its part then weighs 2 ** top = 0
    mean = tl.where(length > 0, mean / total[:, None], 0.0)
    head = tl.arange(0, mean.shape[0])[:, None]
    at = head * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    output += place * (GROUP * HEAD_DIM)
    if num_parts == 1:
        tl.store(output + at, mean.to(output.dtype.element_ty), head < GROUP)
    elif parts is not None:
        part = place * num_splits + split
        tl.store(parts + part * (GROUP * HEAD_DIM) + at, mean, head < GROUP)
        tl.store(logs + part * GROUP + head, (top + tl.log2(total))[:, None], head < GROUP)
        tl.debug_barrier()  # all threads' parts are stored before one of them counts
        if tl.atomic_add(counters + place, 1, sem="acq_rel") == num_parts - 1:
            combine(parts, logs, output, place * num_splits, num_parts, GROUP, HEAD_DIM)
            tl.store(counters + place, 0)


@jit
def combine(parts, logs, output, first_part, num_parts, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Add up the parts of one row and key head, in their order whoever came last."""
    PADDED: tl.constexpr = triton.next_power_of_2(GROUP)
    CHUNK: tl.constexpr = 8  # parts read at once
    head = tl.arange(0, PADDED)
    channels = tl.arange(0, HEAD_DIM)
    top = tl.full([PADDED], -1e30, tl.float32)
    total = tl.zeros([PADDED], tl.float32)
    mean = tl.zeros([PADDED, HEAD_DIM], tl.float32)
    for first in range(0, num_parts, CHUNK):
        part = first + tl.arange(0, CHUNK)
        is_real = (part < num_parts)[:, None] & (head < GROUP)[None, :]
        at = (first_part + part)[:, None] * GROUP + head[None, :]  # (CHUNK, PADDED)
        log = tl.load(logs + at, is_real, other=float("-inf"), cache_modifier=".cg")
        at = at[:, :, None] * HEAD_DIM + channels[None, None, :]
        values = tl.load(parts + at, is_real[:, :, None], other=0.0, cache_modifier=".cg")
        new_top = tl.maximum(top, tl.max(log, 0))
        weights = tl.exp2(log - new_top[None, :])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, 0)
        mean = mean * shrink[:, None] + tl.sum(values * weights[:, :, None], 0)
        top = new_top
    total = tl.where(head < GROUP, total, 1.0)
    at = head[:, None] * HEAD_DIM + channels[None, :]
    tl.store(output + at, (mean / total[:, None]).to(output.dtype.element_ty), (head < GROUP)[:, None])
