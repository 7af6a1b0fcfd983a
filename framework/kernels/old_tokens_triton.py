"""What the Triton kernels of paged attention read of old tokens: their slots, and their part of the softmax.

An int8 cache is read two channels at a time; its scales multiply scores and weights, not keys and values.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from framework.kernels.triton_support import jit, tl


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
        weights, shrink, top, total = weigh(scores, top, total, places, end, num_hidden)
        v = tl.load(v_head + at, (places < end)[:, None], other=0.0)
        mean = tl.dot(weights.to(v.dtype), v, mean * shrink[:, None], input_precision="ieee")
        slots = next_slots
    return top, total, mean


@jit
def old_int8_tokens(
    q, top, total, mean, table, k_head, v_head, k_scales, v_scales, slots, start, end, num_hidden, scale,
    STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """old_tokens of an int8 cache, read in words of two channels: the even ones are one matmul, the odd ones another.

    A word is brought into the tensor cores' order like a float16, which a lone byte cannot be (ldmatrix). The matmuls
    are in float16, where a byte is fewer instructions than in bfloat16, and weights stay in its range: they are scaled
    by no more than 1.
    """
    MATMUL: tl.constexpr = tl.float32 if q.dtype == tl.float32 else tl.float16
    words = tl.arange(0, HEAD_DIM // 2)[None, :]
    k_words = k_head.to(tl.pointer_type(tl.int16), bitcast=True)
    v_words = v_head.to(tl.pointer_type(tl.int16), bitcast=True)
    q_even, q_odd = tl.split(q.to(MATMUL).reshape(q.shape[0], HEAD_DIM // 2, 2))
    even, odd = tl.split(mean.reshape(q.shape[0], HEAD_DIM // 2, 2))
    for first in range(start, end, BLOCK_KEYS):
        next_slots = load_slots(table, first + BLOCK_KEYS, end, BLOCK_SIZE, BLOCK_KEYS)  # a tile early
        places = first + tl.arange(0, BLOCK_KEYS)
        at = slots[:, None] * (STRIDE // 2) + words
        k_even, k_odd = unpack(tl.load(k_words + at, (places < end)[:, None], other=0))
        scores = tl.dot(q_even, tl.trans(k_even.to(MATMUL)), input_precision="ieee")
        scores = tl.dot(q_odd, tl.trans(k_odd.to(MATMUL)), scores, input_precision="ieee")
        scores *= scale * tl.load(k_scales + slots, places < end, other=0.0).to(tl.float32)[None, :]
        weights, shrink, top, total = weigh(scores, top, total, places, end, num_hidden)
        v_scale = tl.load(v_scales + slots, places < end, other=0.0).to(tl.float32)
        largest = tl.max(v_scale, 0)
        weights = (weights * (v_scale / largest)[None, :]).to(MATMUL)
        v_even, v_odd = unpack(tl.load(v_words + at, (places < end)[:, None], other=0))
        even = even * shrink[:, None] + largest * tl.dot(weights, v_even.to(MATMUL), input_precision="ieee")
        odd = odd * shrink[:, None] + largest * tl.dot(weights, v_odd.to(MATMUL), input_precision="ieee")
        slots = next_slots
    return top, total, tl.join(even, odd).reshape(q.shape[0], HEAD_DIM)


@jit
def unpack(words):
    """The low and the high byte of int16 words, both int8 numbers, as float16.

    Below the exponent of 1024, a byte whose sign is turned reads 1024 + 128 + the number.
    """
    low = ((words & 0xFF) ^ 0x6480).to(tl.float16, bitcast=True) - 1152.0
    high = (((words >> 8) & 0xFF) ^ 0x6480).to(tl.float16, bitcast=True) - 1152.0
    return low, high


@jit
def weigh(scores, top, total, places, end, num_hidden):
    """Weights of a tile, relative to the new maximum; what shrinks earlier ones to it; and that maximum and the sum."""
    is_seen = (places >= num_hidden) & (places < end)
    scores = tl.where(is_seen[None, :], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    return weights, shrink, new_top, total * shrink + tl.sum(weights, 1)
