"""PlainAttention equals a naive float64 loop over sequences, tokens and heads, and never sees foreign cache slots."""

import numpy as np
import pytest
import torch

from framework.kernels import attention as kernel
from framework.kernels.attention import plain_attention
from tests.kernels.caches import contents, copy_cache, make_cache

HEAD_DIM = 8
# (query_len, context_len, padding) of each sequence
BATCHES = {
    "fresh prompts": [(7, 7, 0), (3, 3, 0), (7, 7, 0), (1, 1, 0)],
    "decode": [(1, 9, 0), (1, 17, 0), (1, 1, 0), (1, 33, 0)],
    "decode of equal contexts": [(1, 12, 0), (1, 12, 0)],
    "one decode": [(1, 13, 0)],
    "chunks": [(4, 11, 0), (4, 9, 0), (5, 23, 0)],
    "mixed": [(6, 6, 0), (1, 20, 0), (5, 14, 0), (1, 7, 0), (6, 6, 0)],
    "decode before chunks": [(1, 20, 0), (1, 7, 0), (5, 14, 0), (6, 6, 0), (1, 9, 0)],
    "padded prompts": [(9, 9, 0), (9, 9, 4), (9, 9, 8)],
    "padded decode": [(1, 12, 0), (1, 12, 5), (1, 12, 9)],
    "padded chunks": [(4, 4, 6), (4, 8, 6), (4, 12, 6)],
    "contexts far apart": [(1, 60, 0), (1, 3, 0), (1, 58, 0), (1, 14, 0), (1, 4, 0)],
}


def reference(q, keys, values, query_len, context_len, padding):
    """One sequence in float64: q (query_len, heads, dim), keys and values (context_len, kv heads, dim)."""
    group = q.shape[1] // keys.shape[1]
    output = np.zeros(q.shape)
    for row in range(query_len):
        position = context_len - query_len + row
        visible = [slot for slot in range(position + 1) if slot >= padding or slot == position]
        for head in range(q.shape[1]):
            scores = keys[visible, head // group] @ q[row, head] / np.sqrt(q.shape[2])
            weights = np.exp(scores - scores.max())
            output[row, head] = weights / weights.sum() @ values[visible, head // group]
    return output


def make_case(lengths, num_heads, num_kv_heads, block_size, seed=0, is_int8=False):
    """Random q, k, v, a cache poisoned with NaN wherever no earlier token of a sequence is, tables, and the answer.

    With an int8 cache the answer is attention to what it holds of all keys and values, the new ones included.
    """
    rng = np.random.default_rng(seed)
    query_lens, context_lens, padding = np.array(lengths).T
    width = int((-(-context_lens // block_size)).max())
    order = rng.permutation(len(lengths) * width + 5)
    tables = order[: len(lengths) * width].reshape(len(lengths), width)
    k_cache, v_cache = np.full((2, len(order) * block_size, num_kv_heads, HEAD_DIM), np.nan)
    qs, ks, vs, answers = [], [], [], []
    for row, (query_len, context_len, pads) in enumerate(lengths):
        q = rng.normal(size=(query_len, num_heads, HEAD_DIM))
        keys, values = keys_and_values = rng.normal(size=(2, context_len, num_kv_heads, HEAD_DIM))
        for position in range(context_len - query_len):
            slot = tables[row, position // block_size] * block_size + position % block_size
            k_cache[slot], v_cache[slot] = keys[position], values[position]
        new = slice(context_len - query_len, context_len)
        qs.append(q), ks.append(keys[new]), vs.append(values[new])
        if is_int8:
            keys, values = (part.numpy() for part in contents(make_cache(*torch.from_numpy(keys_and_values), True)))
        answers.append(reference(q, keys, values, query_len, context_len, pads))
    tensors = [torch.from_numpy(np.concatenate(parts)) for parts in (qs, ks, vs)]
    cache = make_cache(torch.from_numpy(k_cache), torch.from_numpy(v_cache), is_int8)
    return tensors, cache, (query_lens, context_lens, padding), tables, torch.from_numpy(np.concatenate(answers))


def attend(case, block_size, dtype=torch.float32, device="cpu", use_cache=True):
    (q, k, v), cache, lengths, tables, _ = case
    q, k, v = (tensor.to(device, dtype) for tensor in (q, k, v))
    cache = copy_cache(cache, device, dtype)
    attention = plain_attention(
        *lengths,
        tables if use_cache else None,
        block_size=block_size,
        num_queries_per_kv=q.shape[1] // k.shape[1],
        dtype=dtype,
        device=torch.device(device),
    )
    qkv = torch.cat((q, k, v), dim=1)
    norms = {"q_norm": None, "k_norm": None, "norm_eps": 0.0}
    output = attention(qkv, None, cache if use_cache else None, None, num_kv_heads=k.shape[1], **norms)
    return output.view(q.shape), cache


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(2, 2), (4, 2), (4, 1), (8, 1)])
@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("name", BATCHES)
def test_equals_reference(name, is_int8, block_size, num_heads, num_kv_heads):
    case = make_case(BATCHES[name], num_heads, num_kv_heads, block_size, is_int8=is_int8)
    output, _ = attend(case, block_size)
    torch.testing.assert_close(output.double(), case[-1], atol=2e-6, rtol=1e-5)


def test_writes_new_keys_and_values_to_their_slots():
    case = make_case([(3, 3, 0), (1, 5, 0)], 2, 1, block_size=2)
    (_, k, v), old, _, tables, _ = case
    _, cache = attend(case, 2, dtype=torch.float64)
    slots = [tables[0, 0] * 2, tables[0, 0] * 2 + 1, tables[0, 1] * 2, tables[1, 2] * 2]
    assert torch.equal(cache.k[slots], k)
    assert torch.equal(cache.v[slots], v)
    others = np.setdiff1d(np.arange(len(cache.k)), slots)
    assert torch.equal(cache.k[others].nan_to_num(), old.k[others].nan_to_num())


def test_a_sequence_does_not_depend_on_its_batch():
    lengths = BATCHES["mixed"] + BATCHES["contexts far apart"]
    case = make_case(lengths, 4, 2, block_size=4)
    together, _ = attend(case, 4)
    (q, k, v), cache, _, tables, answer = case
    row = 0
    for index, (query_len, *_) in enumerate(lengths):
        rows = slice(row, row + query_len)
        single = np.array(lengths[index : index + 1]).T
        alone, _ = attend(((q[rows], k[rows], v[rows]), cache, single, tables[index : index + 1], answer), 4)
        torch.testing.assert_close(alone, together[rows], atol=1e-6, rtol=1e-5)
        row += query_len


def test_without_cache_everything_is_fresh():
    case = make_case([(6, 6, 0), (9, 9, 3), (6, 6, 0)], 4, 2, block_size=4)
    output, _ = attend(case, 4, use_cache=False)
    torch.testing.assert_close(output.double(), case[-1], atol=2e-6, rtol=1e-5)


def test_groups(monkeypatch):
    def groups(name):
        query_lens, context_lens, _ = np.array(BATCHES[name]).T
        return [(members.tolist(), fresh) for members, fresh in kernel._group_members(query_lens, context_lens)]

    assert groups("fresh prompts") == [([3], True), ([1], True), ([0, 2], True)]
    assert groups("mixed") == [([1, 3], False), ([2], False), ([0, 4], True)]
    assert groups("contexts far apart") == [([0, 2], False), ([3, 4], False), ([1], False)]
    monkeypatch.setattr(kernel, "MAX_GATHERED_SLOTS", 40)
    assert groups("padded decode") == [([0, 1, 2], False)]
    assert groups("contexts far apart") == [([0], False), ([2], False), ([3, 4], False), ([1], False)]
    case = make_case(BATCHES["contexts far apart"], 4, 2, block_size=4)
    output, _ = attend(case, 4)
    torch.testing.assert_close(output.double(), case[-1], atol=2e-6, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("name", BATCHES)
def test_equals_reference_on_cuda(name, is_int8, dtype, tolerance):
    case = make_case(BATCHES[name], 8, 2, 16, is_int8=is_int8)
    output, _ = attend(case, 16, dtype=dtype, device="cuda")
    if is_int8 and dtype != torch.float32:
        tolerance = 4e-2  # a key that rounds the other way is another int8
    torch.testing.assert_close(output.double().cpu(), case[-1], atol=tolerance, rtol=tolerance)
