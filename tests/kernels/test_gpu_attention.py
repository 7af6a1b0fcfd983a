"""FlashAttention and MixedAttention give what plain attention gives: prompts, padded ones, chunks, decode rows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from framework.kernels import gpu_attention
from framework.kernels.attention import plain_attention
from framework.kernels.gpu_attention import FlashAttention, MixedAttention, flash_segments
from framework.kernels.mixed_inputs import MixedSizes, mixed_inputs
from framework.kernels.rope_store import plain_rope_store
from tests.kernels.caches import assert_close, contents, copy_cache, make_cache, step_of
from tests.kernels.test_attention import BATCHES
from tests.thinning import mostly_nightly

needs_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="runs in Triton's interpreter without CUDA")

NUM_HEADS, NUM_KV_HEADS, BLOCK_SIZE = 4, 2, 4
HEADS = {"num_kv_heads": NUM_KV_HEADS, "q_norm": None, "k_norm": None, "norm_eps": 0.0}
WHOLE = ["fresh prompts", "padded prompts"]


def loop_flash(q, k, v, query_starts, key_starts, max_query_len, max_key_len, dropout, is_causal, *others, scale):
    """torch.ops.aten._flash_attention_forward, one segment after the other; causal from the bottom right."""
    assert is_causal
    assert not dropout
    outputs = []
    for query, key in zip(query_starts[:-1].tolist(), key_starts[:-1].tolist(), strict=True):
        position = len(outputs) + 1
        rows, slots = slice(query, query_starts[position]), slice(key, key_starts[position])
        queries, keys, values = (part.transpose(0, 1) for part in (q[rows], k[slots], v[slots]))
        query_len, key_len = queries.shape[1], keys.shape[1]
        assert 0 < query_len <= max_query_len
        assert query_len <= key_len <= max_key_len
        mask = torch.ones(query_len, key_len, dtype=torch.bool).tril(key_len - query_len)
        output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)
        outputs.append(output.transpose(0, 1))
    return (torch.cat(outputs),)


def flash_of(query_lens, context_lens, padding, tables, seats, device):
    assert tables is None
    starts, longest = flash_segments(query_lens, padding)
    return FlashAttention(torch.from_numpy(starts).to(device, torch.int32), longest)


def mixed_of(query_lens, context_lens, padding, tables, seats, device, num_spare=0):
    """Sequences that stand first and have one new token behind others decode."""
    num_decode = int(np.cumprod((query_lens == 1) & (context_lens > 1)).sum())
    sizes = MixedSizes(int(query_lens.sum()) + num_spare, len(query_lens) + 2, NUM_HEADS // NUM_KV_HEADS, 40)
    lens = (query_lens, context_lens, padding)
    arrays = mixed_inputs(*lens, tables, seats, sizes, num_decode=num_decode, block_size=BLOCK_SIZE)
    sent = {}
    for name, array in arrays.items():
        padded = np.full((*array.shape[:-1], max(sizes.shapes[name][-1], array.shape[-1])), 10**6)
        padded[..., : array.shape[-1]] = array
        exact = name in ("slots", "num_items", "num_tiles") or name.startswith("decode")
        sent[name] = torch.from_numpy(array if exact else padded).to(device, torch.int32)
    decode = (sent["decode_seats"], sent["decode_lens"], sent["decode_padding"])
    work = (sent["items"], sent["num_items"], sent["tiles"], sent["num_tiles"])
    on_device = torch.from_numpy(tables).to(device, torch.int32)
    return MixedAttention(on_device, sent["slots"], *decode, *work, BLOCK_SIZE)


def both(name, make, dtype, device, head_dim, is_int8=False, window=None, num_spare=0):
    """Outputs of plain and of another attention of one batch, and the caches that each leaves."""
    query_lens, context_lens, padding = np.array(BATCHES[name]).T
    rng = np.random.default_rng(0)
    width = int((-(-context_lens // BLOCK_SIZE)).max())
    num_seqs = len(query_lens)
    tables = rng.permutation((num_seqs + 2) * width + 5)[: (num_seqs + 2) * width].reshape(num_seqs + 2, width)
    seats = rng.permutation(num_seqs + 2)[:num_seqs]
    generator = torch.Generator().manual_seed(0)
    num_rows = int(query_lens.sum()) + num_spare
    qkv = torch.randn(num_rows, NUM_HEADS + 2 * NUM_KV_HEADS, head_dim, generator=generator)
    rope = torch.randn(num_rows, 2, head_dim, generator=generator).to(device, dtype)
    caches = torch.randn(2, (tables.size + 5) * BLOCK_SIZE, NUM_KV_HEADS, head_dim, generator=generator)
    qkv, cache = qkv.to(device, dtype), copy_cache(make_cache(*caches, is_int8), device, dtype)
    use_cache = make is mixed_of
    lens = (query_lens, context_lens, padding)
    plain = plain_attention(
        *lens, tables[seats] if use_cache else None, block_size=BLOCK_SIZE, num_queries_per_kv=2, windows=(window,),
        dtype=dtype, device=torch.device(device),
    )  # fmt: skip
    other = make(*lens, tables if use_cache else None, seats, device, **({"num_spare": num_spare} if num_spare else {}))
    results = []
    for attention, num in ((plain, num_rows - num_spare), (other, num_rows)):
        own = copy_cache(cache, device, dtype)
        output = attention(qkv[:num].clone(), rope[:num], own if use_cache else None, window, **HEADS)
        results.append((output[: num_rows - num_spare], own))
        assert not output[num_rows - num_spare :].any()
    return results, query_lens, padding


def check(results, query_lens, padding, tolerance):
    """Equal but for the pads of a whole prompt, which nobody reads."""
    (plain, plain_cache), (flash, flash_cache) = results
    starts = np.cumsum(query_lens) - query_lens
    rows = np.concatenate([np.arange(s + p, s + q) for s, q, p in zip(starts, query_lens, padding, strict=True)])
    torch.testing.assert_close(flash[rows], plain[rows], atol=tolerance, rtol=tolerance)
    assert flash.isfinite().all()
    for got, want in zip(contents(flash_cache), contents(plain_cache), strict=True):
        assert_close(got, want, tolerance, step_of(plain_cache))


@pytest.mark.parametrize("name", WHOLE)
def test_segments_of_prompts_without_a_cache(name, monkeypatch):
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", loop_flash)
    monkeypatch.setattr(gpu_attention, "rope_store", plain_rope_store)
    check(*both(name, flash_of, torch.float32, "cpu", head_dim=8), tolerance=2e-6)


@needs_interpreter
@pytest.mark.parametrize(("name", "is_int8"), mostly_nightly([*BATCHES], [False, True]))
def test_mixed_steps(name, is_int8):
    check(*both(name, mixed_of, torch.float32, "cpu", head_dim=32, is_int8=is_int8), tolerance=2e-5)


@needs_interpreter
@pytest.mark.parametrize("name", ["mixed", "decode", "padded prompts", "decode before chunks"])
def test_mixed_steps_with_a_window_and_rows_of_nobody(name):
    results = both(name, mixed_of, torch.float32, "cpu", head_dim=32, window=5, num_spare=7)
    check(*results, tolerance=2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", WHOLE)
def test_the_real_flash_attention_equals_plain_attention(name, head_dim):
    check(*both(name, flash_of, torch.bfloat16, "cuda", head_dim), tolerance=3e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("name", BATCHES)
def test_mixed_steps_equal_plain_attention_on_cuda(name, is_int8, head_dim, window):
    results = both(name, mixed_of, torch.bfloat16, "cuda", head_dim, is_int8=is_int8, window=window, num_spare=9)
    check(*results, tolerance=3e-2)
