"""Triton kernels of linear.py, which says what they compute. Shapes in comments are (output features, rows).

A matrix product with its weights as left operand, or a matrix-vector product for one row; the sum over input features
may be split over programs, of which the last to arrive adds the parts in a fixed order. Weights of one byte become x's
dtype in registers, so that a byte is read: four at a time by bits, as the cast would be slower than the read. Scales of
groups multiply the sums over a group. Where x is of bytes too, with a scale per row, so is the product: int8 exact, or
float8.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

# Four int8 → four 64ths of them. A byte whose sign is turned is 128 more than the number, u. Beneath the exponent of
# 1024 in float16 it reads 1024 + u, beneath that of 2 ** 17 in float32 2 ** 17 + u / 64, without one in bfloat16
# u / 2 ** 133.
INT8_TO_FLOAT16 = tl.constexpr(
    "{ .reg .b32 p, q, m, c; mov.b32 m, 0x24002400; mov.b32 c, 0xcc80cc80;"
    "prmt.b32 p, $2, 0, 0x4140; prmt.b32 q, $2, 0, 0x4342;"
    "lop3.b32 p, p, 0x00800080, 0x64006400, 0xbe; lop3.b32 q, q, 0x00800080, 0x64006400, 0xbe;"
    "fma.rn.f16x2 $0, p, m, c; fma.rn.f16x2 $1, q, m, c; }"
)
INT8_TO_BFLOAT16 = tl.constexpr(
    "{ .reg .b32 u, p, q, m, c; mov.b32 m, 0x7f007f00; mov.b32 c, 0xc000c000; xor.b32 u, $2, 0x80808080;"
    "prmt.b32 p, u, 0, 0x4140; prmt.b32 q, u, 0, 0x4342;"
    "fma.rn.bf16x2 $0, p, m, c; fma.rn.bf16x2 $1, q, m, c; }"
)
INT8_TO_FLOAT32 = tl.constexpr(
    "{ .reg .b32 u, p, h; .reg .f32 f; xor.b32 u, $4, 0x80808080; mov.b32 h, 0x48000000;"
    "prmt.b32 p, u, h, 0x7440; mov.b32 f, p; sub.f32 $0, f, 0f48000080;"
    "prmt.b32 p, u, h, 0x7441; mov.b32 f, p; sub.f32 $1, f, 0f48000080;"
    "prmt.b32 p, u, h, 0x7442; mov.b32 f, p; sub.f32 $2, f, 0f48000080;"
    "prmt.b32 p, u, h, 0x7443; mov.b32 f, p; sub.f32 $3, f, 0f48000080; }"
)
# Four float8_e4m3 → four bfloat16: four bits lower, exponent and fraction read the number times 2 ** -120.
FLOAT8_TO_BFLOAT16 = tl.constexpr(
    "{ .reg .b32 p, q, a, b, m, z; mov.b32 m, 0x7b807b80; mov.b32 z, 0x80008000;"
    "prmt.b32 p, $2, 0, 0x1404; prmt.b32 q, $2, 0, 0x3424; shr.b32 a, p, 4; shr.b32 b, q, 4;"
    "and.b32 a, a, 0x07f007f0; and.b32 b, b, 0x07f007f0;"
    "lop3.b32 a, p, 0x80008000, a, 0xea; lop3.b32 b, q, 0x80008000, b, 0xea;"
    "fma.rn.bf16x2 $0, a, m, z; fma.rn.bf16x2 $1, b, m, z; }"
)


@triton.jit
def _widen(tile, dtype: tl.constexpr, BY_BITS: tl.constexpr):
    """The tile in `dtype`, exactly; of int8 a 64th."""
    if tile.dtype == tl.int8 and not BY_BITS:
        wide = (tile.to(tl.float32) * 0.015625).to(dtype)
    elif tile.dtype == tl.int8 and dtype == tl.float32:
        wide = tl.inline_asm_elementwise(
            INT8_TO_FLOAT32, "=f,=f,=f,=f,r", [tile], dtype=tl.float32, is_pure=True, pack=4
        )
    elif tile.dtype == tl.int8 and dtype == tl.float16:
        wide = tl.inline_asm_elementwise(INT8_TO_FLOAT16, "=r,=r,r", [tile], dtype=tl.float16, is_pure=True, pack=4)
    elif tile.dtype == tl.int8:
        wide = tl.inline_asm_elementwise(INT8_TO_BFLOAT16, "=r,=r,r", [tile], dtype=tl.bfloat16, is_pure=True, pack=4)
    elif BY_BITS and tile.dtype == tl.float8e4nv and dtype != tl.float16:
        wide = tl.inline_asm_elementwise(FLOAT8_TO_BFLOAT16, "=r,=r,r", [tile], dtype=tl.bfloat16, is_pure=True, pack=4)
        wide = wide.to(dtype)
    else:
        wide = tile.to(dtype)
    return wide


@triton.jit
def _vector(pointer, at, size):
    """Values `at` of a vector of `size`, in float32, zero past its end."""
    return tl.load(pointer + at, mask=at < size, other=0.0).to(tl.float32)


@triton.jit
def _row_moments(row, in_features, norm_eps, IS_RMS: tl.constexpr, BLOCK: tl.constexpr):
    """Mean (0 for RMSNorm) and 1 / sqrt(variance + norm_eps) of the in_features values at `row`."""
    k = tl.arange(0, BLOCK)
    values = _vector(row, k, in_features)
    mean = 0.0
    if not IS_RMS:
        mean = tl.sum(values, 0) / in_features
        values = tl.where(k < in_features, values - mean, 0.0)
    return mean, tl.rsqrt(tl.sum(values * values, 0) / in_features + norm_eps)


@triton.jit
def norm_kernel(
    x, norm_weight, norm_bias, out, out_scale, in_features, x_stride, norm_eps, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """One row's norm, if there is one, as int8 or float8 with its scale, if that is asked for."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    k = tl.arange(0, BLOCK)
    scale = 1.0
    if norm_weight is not None:
        scale = _vector(norm_weight, k, in_features)
    if PDL:
        tl.extra.cuda.gdc_wait()
    row = x + tl.program_id(0).to(tl.int64) * x_stride
    values = _vector(row, k, in_features)
    if norm_weight is not None:
        mean, rstd = _row_moments(row, in_features, norm_eps, norm_bias is None, BLOCK)
        values = (values - mean) * rstd * scale
    if norm_bias is not None:
        values += _vector(norm_bias, k, in_features)
    if out_scale is not None:
        values = tl.where(k < in_features, values, 0.0)
        bits = tl.abs(values).to(tl.int32, bitcast=True)  # in the order of the numbers, NaN on top
        step = tl.max(bits, 0).to(tl.float32, bitcast=True) / (127 if out.dtype.element_ty == tl.int8 else 448)
        step = tl.where(step < 2.0**-126, 2.0**-126, step)
        tl.store(out_scale + tl.program_id(0), step)
        values = values / step
        if out.dtype.element_ty == tl.int8:
            values = values + 1.5 * 2.0**23 - 1.5 * 2.0**23  # to the nearest whole number
    out += tl.program_id(0).to(tl.int64) * in_features
    tl.store(out + k, values.to(out.dtype.element_ty), mask=k < in_features)


@triton.jit
def _prefetch(rows, start, end, BLOCK_K: tl.constexpr, PREFETCH: tl.constexpr):
    """Ask L2 for PREFETCH * BLOCK_K values from `start` of each row; no thread waits for them."""
    k = tl.minimum(start + BLOCK_K * tl.arange(0, PREFETCH), end - BLOCK_K)
    addresses = (rows[:, None] + k[None, :]).to(tl.int64)
    num_bytes: tl.constexpr = BLOCK_K * rows.dtype.element_ty.primitive_bitwidth // 8
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;", "=r,l,r", [addresses, num_bytes],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _add_product(acc, weight_tile, x_tile, BY_BITS: tl.constexpr):
    """acc (BLOCK_N, BLOCK_M) and the product of tiles (BLOCK_N, BLOCK_K) and (BLOCK_M, BLOCK_K); int8 is exact."""
    if x_tile.dtype == tl.int8:
        acc = tl.dot(weight_tile, tl.trans(x_tile), acc, out_dtype=tl.int32)
    elif x_tile.dtype == tl.float8e4nv:
        acc = tl.dot(weight_tile, tl.trans(x_tile), acc)
    else:
        acc = tl.dot(_widen(weight_tile, x_tile.dtype, BY_BITS), tl.trans(x_tile), acc, input_precision="ieee")
    return acc


@triton.jit
def _group_sums(products, scale_rows, k0, in_features, num_weight_rows, GROUP_SIZE: tl.constexpr):
    """Sums of 16 products of a row each, (BLOCK_N, BLOCK_K / 16), times the scales of their groups."""
    NUM: tl.constexpr = products.shape[1] // 16
    k = tl.minimum(k0 + 16 * tl.arange(0, NUM), in_features - 1)
    scales = tl.load(scale_rows[:, None] + k[None, :] // GROUP_SIZE * num_weight_rows)
    return tl.sum(tl.reshape(products, [products.shape[0], NUM, 16]), 2) * scales


@triton.jit
def _store(
    acc, bias, delta, residual, out, weight_ids, cols, rows, out_features, num_rows, residual_stride,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Bias, delta, activation and residual of the sums acc, (BLOCK_N, BLOCK_M) of the weight's rows `weight_ids`."""
    GATED: tl.constexpr = ACTIVATION == "silu_gate"
    is_row = (rows < num_rows)[None, :]
    if bias is not None:
        acc += tl.load(bias + weight_ids).to(tl.float32)[:, None]
    if delta is not None:  # (num_rows, weight rows)
        place = delta + rows[None, :] * (out_features * (1 + GATED)) + weight_ids[:, None]
        acc += tl.load(place, mask=is_row, other=0.0).to(tl.float32)
    if GATED:
        halves = tl.reshape(acc, [2, acc.shape[0] // 2, acc.shape[1]])
        gate, up = tl.split(tl.permute(halves, [1, 2, 0]))
        acc = gate * tl.sigmoid(gate) * up
    elif ACTIVATION == "gelu":  # 0.5 (1 + tanh(u)) = sigmoid(2 u)
        acc = acc * tl.sigmoid(1.5957691216057308 * (acc + 0.044715 * acc * acc * acc))
    mask = (cols < out_features)[:, None] & is_row
    if residual is not None:
        acc += tl.load(residual + rows[None, :] * residual_stride + cols[:, None], mask=mask, other=0.0).to(tl.float32)
    tl.store(out + rows[None, :] * out_features + cols[:, None], acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _arrives_last(acc, parts, counter, split, SPLIT_K: tl.constexpr):
    """Write this program's part of the sums; whether all others had written theirs."""
    tl.store(parts + split * (acc.shape[0] * acc.shape[1]), acc)
    tl.debug_barrier()  # all threads have written before the one that counts arrives
    is_last = tl.atomic_add(counter, 1, sem="acq_rel") == SPLIT_K - 1
    if is_last:
        tl.store(counter, 0)
    return is_last


@triton.jit
def _sum_parts(parts, acc, SPLIT_K: tl.constexpr):
    """Always in the same order, whoever arrives last; .cg reads past an L1 that may be stale."""
    SIZE: tl.constexpr = acc.shape[0] * acc.shape[1]
    acc = tl.zeros_like(acc)
    for split in range(SPLIT_K):
        acc += tl.load(parts + split * SIZE, cache_modifier=".cg")
    return acc


@triton.jit(do_not_specialize=["num_rows"])  # it changes from step to step
def linear_kernel(
    x, x_scale, weight, scale, bias, norm_weight, norm_bias, delta, residual, out, partials, counters,
    num_rows, out_features, in_features, x_stride, residual_stride, norm_eps,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr, NUM_STAGES: tl.constexpr, EVEN_K: tl.constexpr, NORM_BLOCK: tl.constexpr,
    PREFETCH: tl.constexpr, PDL: tl.constexpr, GROUP_SIZE: tl.constexpr, BY_BITS: tl.constexpr,
):  # fmt: skip
    # Under silu_gate half of a tile's BLOCK_N rows of the weight are gates, the other half what these multiply
    WIDTH: tl.constexpr = BLOCK_N // 2 if ACTIVATION == "silu_gate" else BLOCK_N  # output features
    # One row keeps a sum per weight of the tile, or of 16, and adds them up at the end
    ACC_WIDTH: tl.constexpr = BLOCK_M if BLOCK_M > 1 else BLOCK_K // 16 if GROUP_SIZE else BLOCK_K
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tile, split = tl.program_id(0) // SPLIT_K, tl.program_id(0) % SPLIT_K
    num_row_blocks = tl.cdiv(num_rows, BLOCK_M)  # neighbours share weights, not rows
    rows = tile % num_row_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    first_col, n = tile // num_row_blocks * WIDTH, tl.arange(0, BLOCK_N)
    # Past the last feature the last one is read again: no mask in the loop, none of it is stored
    weight_ids = tl.minimum(first_col + n % WIDTH, out_features - 1) + n // WIDTH * out_features
    share = tl.cdiv(tl.cdiv(in_features, BLOCK_K), SPLIT_K) * BLOCK_K
    start = split * share
    end = tl.minimum(start + share, in_features)
    weight_rows = weight + weight_ids.to(tl.int64) * in_features
    scale_rows, num_weight_rows = None, out_features * (BLOCK_N // WIDTH)
    if scale is not None:  # (groups, weight rows), one group where GROUP_SIZE is 0
        scale_rows = scale + weight_ids
    if PDL:
        if PREFETCH:
            _prefetch(weight_rows, start, end, BLOCK_K, PREFETCH)
        tl.extra.cuda.gdc_wait()  # nothing the previous kernel wrote is read above, nothing at all is written
    if norm_weight is not None:
        row = x + tile % num_row_blocks * x_stride
        mean, rstd = _row_moments(row, in_features, norm_eps, norm_bias is None, NORM_BLOCK)

    x_rows = x + rows[:, None] * x_stride
    if GROUP_SIZE:  # no mask, whose registers they lack: past the last row that one again, none of it is stored
        x_rows = x + tl.minimum(rows, num_rows - 1)[:, None] * x_stride
    if GROUP_SIZE and BLOCK_M > 1:
        group_scale = tl.load(scale_rows + start // GROUP_SIZE * num_weight_rows)
    acc = tl.zeros([BLOCK_N, ACC_WIDTH], tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32)
    for k0 in tl.range(start, end, BLOCK_K, num_stages=NUM_STAGES):
        k = k0 + tl.arange(0, BLOCK_K)
        if EVEN_K and GROUP_SIZE:
            x_tile = tl.load(x_rows + k[None, :], eviction_policy="evict_last")
        else:
            mask = (rows < num_rows)[:, None]
            if not EVEN_K:
                mask = mask & (k < in_features)[None, :]
            x_tile = tl.load(x_rows + k[None, :], mask=mask, other=0.0, eviction_policy="evict_last")
        if norm_weight is not None:
            x_tile = (x_tile.to(tl.float32) - mean) * rstd * _vector(norm_weight, k, in_features)[None, :]
            if norm_bias is not None:
                x_tile += _vector(norm_bias, k, in_features)[None, :]
        weights = weight_rows[:, None] + k[None, :]
        if EVEN_K:
            weight_tile = tl.load(weights, eviction_policy="evict_first")
        else:
            weight_tile = tl.load(weights, mask=(k < in_features)[None, :], other=0.0, eviction_policy="evict_first")
        if BLOCK_M == 1:
            products = _widen(weight_tile, tl.float32, BY_BITS) * x_tile.to(tl.float32)
            if GROUP_SIZE:
                products = _group_sums(products, scale_rows, k0, in_features, num_weight_rows, GROUP_SIZE)
            acc += products
        elif GROUP_SIZE:  # a tile is of one group
            after = tl.minimum(k0 + BLOCK_K, in_features - 1) // GROUP_SIZE
            next_scale = tl.load(scale_rows + after * num_weight_rows)  # an iteration before it is needed
            acc += _add_product(tl.zeros_like(acc), weight_tile, x_tile, BY_BITS) * group_scale[:, None]
            group_scale = next_scale
        else:
            acc = _add_product(acc, weight_tile, x_tile, BY_BITS)

    if BLOCK_M == 1:
        acc = tl.sum(acc, 1, keep_dims=True)
    if weight.dtype.element_ty == tl.int8 and x.dtype.element_ty != tl.int8:
        acc *= 64.0  # see _widen
    if x_scale is not None:
        acc = acc.to(tl.float32) * tl.load(x_scale + rows, mask=rows < num_rows, other=0.0)[None, :]
    if scale is not None and GROUP_SIZE == 0:
        acc *= tl.load(scale_rows)[:, None]
    is_last = True
    if SPLIT_K > 1:  # (num_tiles, SPLIT_K, BLOCK_N, BLOCK_M)
        place = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        parts = partials + place + tile * (SPLIT_K * BLOCK_N * BLOCK_M)
        is_last = _arrives_last(acc, parts, counters + tile, split, SPLIT_K)
        if is_last:
            acc = _sum_parts(parts, acc, SPLIT_K)
    if is_last:
        cols = first_col + tl.arange(0, WIDTH)
        _store(
            acc, bias, delta, residual, out, weight_ids, cols, rows, out_features, num_rows, residual_stride, ACTIVATION
        )
