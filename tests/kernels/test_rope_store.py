"""rope_store equals plain_rope_store, and that a loop over rows; the caches change at the given slots only."""

import pytest
import torch

from framework.kernels.rope_store import plain_rope_store, rope_store

pytest.importorskip("triton")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # without CUDA in Triton's interpreter


def make_case(num_rows=5, num_heads=4, num_kv_heads=2, head_dim=16, rope=True, norms=False, dtype=torch.float32):
    torch.manual_seed(0)
    slots = torch.randperm(2 * num_rows)[:num_rows]
    args = {
        "qkv": torch.randn(num_rows, num_heads + 2 * num_kv_heads, head_dim),
        "rope": torch.randn(num_rows, 2, head_dim) if rope else None,
        "slots": slots,
        "k_cache": torch.full((2 * num_rows, num_kv_heads, head_dim), torch.nan),
        "v_cache": torch.full((2 * num_rows, num_kv_heads, head_dim), torch.nan),
    }
    if norms:
        args |= {"q_norm": torch.rand(head_dim), "k_norm": torch.rand(head_dim) + 0.5, "norm_eps": 1e-5}
    for name, value in args.items():
        if isinstance(value, torch.Tensor):
            args[name] = value.to(DEVICE, dtype if value.is_floating_point() else None)
    return args | {"num_kv_heads": num_kv_heads}


def check(args, tolerance=1e-5):
    def wide(value):
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(torch.float64, copy=True) if is_float else value

    reference, before = {name: wide(value) for name, value in args.items()}, args["qkv"].clone()
    expected, actual = plain_rope_store(**reference), rope_store(**args)
    assert torch.equal(args["qkv"], before)
    expected, actual = (
        (*tensors, part["k_cache"], part["v_cache"]) for tensors, part in ((expected, reference), (actual, args))
    )
    for got, want in zip(actual, expected, strict=True):
        if want is not None:
            torch.testing.assert_close(got.double(), want, atol=tolerance, rtol=tolerance, equal_nan=True)


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 16), (12, 12, 64), (32, 8, 128), (18, 1, 32)]
)
def test_heads(num_heads, num_kv_heads, head_dim):
    check(make_case(5, num_heads, num_kv_heads, head_dim))


@pytest.mark.parametrize(("rope", "norms"), [(False, False), (True, True), (False, True)])
def test_rope_and_norms_are_optional(rope, norms):
    check(make_case(rope=rope, norms=norms))


@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("absent", ["slots", "caches"])
def test_writing_is_optional(absent, rope):
    nothing = {"slots": None} if absent == "slots" else {"k_cache": None, "v_cache": None}
    check(make_case(rope=rope) | nothing)


def test_int32_slots_and_half_precision():
    case = make_case(dtype=torch.float16)
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
    assert torch.equal(case["k_cache"][case["slots"][0]], k[0])
    assert case["k_cache"].isnan().any(dim=(1, 2)).sum() == 2


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("rope", "norms"), [(True, False), (True, True), (False, False)])
def test_equals_reference_on_cuda(rope, norms, dtype, tolerance):
    check(make_case(1000, 32, 8, 128, rope=rope, norms=norms, dtype=dtype), tolerance)
