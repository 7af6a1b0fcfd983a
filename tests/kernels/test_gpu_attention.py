"""FlashAttention's segments give what plain attention gives: prompts, padded ones, chunks behind a prefix."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from framework.kernels import gpu_attention
from framework.kernels.attention import plain_attention
from framework.kernels.gpu_attention import flash_attention, flash_inputs
from framework.kernels.rope_store import plain_rope_store
from tests.kernels.caches import assert_close, contents, copy_cache, make_cache, step_of
from tests.kernels.test_attention import BATCHES

NUM_HEADS, NUM_KV_HEADS, BLOCK_SIZE = 4, 2, 4
HEADS = {"num_kv_heads": NUM_KV_HEADS, "q_norm": None, "k_norm": None, "norm_eps": 0.0}
CASES = ["fresh prompts", "padded prompts", "chunks", "mixed", "decode", "contexts far apart"]


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


def both(name, use_cache, dtype, device, head_dim, is_int8=False):
    """Outputs of plain and of flash attention of one batch, and the caches that each leaves."""
    query_lens, context_lens, padding = np.array(BATCHES[name]).T
    rng = np.random.default_rng(0)
    width = int((-(-context_lens // BLOCK_SIZE)).max())
    tables = rng.permutation(len(query_lens) * width + 5)[: len(query_lens) * width].reshape(len(query_lens), width)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(int(query_lens.sum()), NUM_HEADS + 2 * NUM_KV_HEADS, head_dim, generator=generator)
    rope = torch.randn(len(qkv), 2, head_dim, generator=generator).to(device, dtype)
    caches = torch.randn(2, (tables.size + 5) * BLOCK_SIZE, NUM_KV_HEADS, head_dim, generator=generator)
    qkv, cache = qkv.to(device, dtype), copy_cache(make_cache(*caches, is_int8), device, dtype)
    lens = (query_lens, context_lens, padding, tables if use_cache else None)
    plain = plain_attention(
        *lens, block_size=BLOCK_SIZE, num_queries_per_kv=2, dtype=dtype, device=torch.device(device)
    )
    arrays, longest = flash_inputs(*lens, BLOCK_SIZE)
    sent = {key: torch.from_numpy(array).to(device, torch.int32) for key, array in arrays.items()}
    results = []
    for attention in (plain, flash_attention(sent, *longest)):
        own = copy_cache(cache, device, dtype)
        output = attention(qkv.clone(), rope, own if use_cache else None, None, **HEADS)
        results.append((output, own))
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


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_segments_equal_plain_attention(name, is_int8, monkeypatch):
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", loop_flash)
    monkeypatch.setattr(gpu_attention, "rope_store", plain_rope_store)
    check(*both(name, True, torch.float32, "cpu", head_dim=8, is_int8=is_int8), tolerance=2e-6)


@pytest.mark.parametrize("name", ["fresh prompts", "padded prompts"])
def test_without_a_cache(name, monkeypatch):
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", loop_flash)
    monkeypatch.setattr(gpu_attention, "rope_store", plain_rope_store)
    check(*both(name, False, torch.float32, "cpu", head_dim=8), tolerance=2e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("kept", ["bfloat16", "int8", "nothing"])
@pytest.mark.parametrize("name", CASES)
def test_the_real_kernel_equals_plain_attention(name, kept, head_dim):
    if kept == "nothing" and "prompts" not in name:
        pytest.skip("without a cache every slot is new")
    results = both(name, kept != "nothing", torch.bfloat16, "cuda", head_dim, is_int8=kept == "int8")
    check(*results, tolerance=3e-2)
