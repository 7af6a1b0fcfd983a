"""rope_store equals plain_rope_store, and that a loop over rows; the caches change at the given slots only."""

import pytest
import torch

from framework.kernels.layer_cache import LayerCache
from framework.kernels.rope_store import plain_rope_store, rope_store
from tests.kernels.caches import assert_close, contents, copy_cache, make_cache, step_of, with_key_offset

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # without CUDA in Triton's interpreter


def make_case(
    num_rows=5, num_heads=4, num_kv_heads=2, head_dim=16, rope=True, norms=False, dtype=torch.float32, is_int8=False
):
    torch.manual_seed(0)
    slots = torch.randperm(2 * num_rows)[:num_rows]
    poison = torch.full((2, 2 * num_rows, num_kv_heads, head_dim), torch.nan)
    args = {
        "qkv": torch.randn(num_rows, num_heads + 2 * num_kv_heads, head_dim),
        "rope": torch.randn(num_rows, 2, head_dim) if rope else None,
        "slots": slots,
        "cache": make_cache(*poison, is_int8),
    }
    if norms:
        args |= {"q_norm": torch.rand(head_dim), "k_norm": torch.rand(head_dim) + 0.5, "norm_eps": 1e-5}
    return {name: move(value, dtype) for name, value in args.items()} | {"num_kv_heads": num_kv_heads}


def move(value, dtype):
    if isinstance(value, LayerCache):
        return copy_cache(value, DEVICE, dtype)
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(DEVICE, dtype if value.is_floating_point() else None, copy=True)


def check(args, tolerance=1e-5):
    reference, before = {name: move(value, torch.float64) for name, value in args.items()}, args["qkv"].clone()
    expected, actual = plain_rope_store(**reference), rope_store(**args)
    assert torch.equal(args["qkv"], before)
    step = 0.0
    if args["cache"] is not None:
        step = step_of(reference["cache"])
        expected, actual = (*expected, *contents(reference["cache"])), (*actual, *contents(args["cache"]))
    for got, want in zip(actual, expected, strict=True):
        assert_close(got, want, tolerance, step)


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 16), (12, 12, 64), (32, 8, 128), (18, 1, 32)]
)
def test_heads(num_heads, num_kv_heads, head_dim, is_int8):
    check(make_case(5, num_heads, num_kv_heads, head_dim, is_int8=is_int8))


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize(("rope", "norms"), [(False, False), (True, True), (False, True)])
def test_rope_and_norms_are_optional(rope, norms, is_int8):
    check(make_case(rope=rope, norms=norms, is_int8=is_int8))


@pytest.mark.parametrize("rope", [True, False])
def test_the_offset_of_int8_keys_is_taken_off(rope):
    case = make_case(num_kv_heads=3, num_heads=6, rope=rope, is_int8=True)
    case["cache"] = with_key_offset(case["cache"])
    check(case, 5e-5)
    plain = plain_rope_store(**case | {"cache": None})[1]
    kept = rope_store(**case)[1] + case["cache"].key_offset.to(DEVICE)
    torch.testing.assert_close(kept, plain, atol=2.0, rtol=0)  # half a step of what lies 300 off


@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("absent", ["slots", "cache"])
def test_writing_is_optional(absent, rope):
    check(make_case(rope=rope) | {absent: None})


@pytest.mark.parametrize("is_int8", [False, True])
def test_int32_slots_and_half_precision(is_int8):
    case = make_case(dtype=torch.float16, is_int8=is_int8)
    check(case | {"slots": case["slots"].int()}, tolerance=3e-3)


def test_plain_is_rotation_of_channel_pairs():
    case = make_case(num_rows=2, norms=True)
    _, k, v = plain_rope_store(**case)
    x = case["qkv"][1, 5]  # row 1, second key head
    x = x / (x.square().mean() + 1e-5).sqrt() * case["k_norm"]
    cos, sin = case["rope"][1]
    turned = torch.cat((x[:8] * cos[:8] + x[8:] * sin[:8], x[8:] * cos[8:] + x[:8] * sin[8:]))
    torch.testing.assert_close(k[1, 1], turned)
    assert torch.equal(v, case["qkv"][:, 6:])
    assert torch.equal(case["cache"].k[case["slots"][0]], k[0])
    assert case["cache"].k.isnan().any(dim=(1, 2)).sum() == 2


@pytest.mark.filterwarnings("ignore:invalid value")  # of the interpreter's
def test_a_nan_and_an_infinity_are_nowhere_finite():
    """Not in what is returned, nor in the cache; the heads beside them are as they were."""
    case = make_case(is_int8=True, rope=False)
    case["qkv"][1, 4, 3], case["qkv"][2, 7, 0] = torch.nan, -torch.inf  # row 1's first key, row 2's second value
    for function in (plain_rope_store, rope_store):
        _, k, v = function(**case)
        stored = case["cache"].read(case["slots"], torch.float32)
        for keys, values in ((k, v), stored):
            assert torch.equal(keys.isfinite().all(2), torch.tensor([[1, 1], [0, 1]] + [[1, 1]] * 3, device=DEVICE) > 0)
            assert not values[2, 1].isfinite().any()
            assert values.isfinite().all(2).sum() == 9


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("rope", "norms"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("is_int8", [False, True])
def test_equals_reference_on_cuda(is_int8, rope, norms, dtype, tolerance):
    check(make_case(1000, 32, 8, 128, rope=rope, norms=norms, dtype=dtype, is_int8=is_int8), tolerance)
