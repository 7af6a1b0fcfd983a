import pytest
import torch

from framework.engine.torch_engine.sampling import sample

LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.9, 0.0]).log_softmax(-1)


def draws(temperature=1.0, top_k=0, top_p=1.0, num=20_000, seed=0):
    """Share of each token among many draws from LOGITS."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sample(LOGITS.expand(num, -1), temperature, top_k, top_p, generator)
    return torch.bincount(tokens, minlength=5) / num


def test_greedy():
    logits = torch.tensor([[0.1, 3.0, 2.0], [5.0, -1.0, 4.9]])
    assert sample(logits, 0.0, 0, 1.0, None).tolist() == [1, 0]
    assert sample(logits.bfloat16(), 0.0, 2, 0.5, None).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_softmax(temperature):
    torch.testing.assert_close(draws(temperature), (LOGITS / temperature).softmax(-1), atol=0.015, rtol=0)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [0, 1, 3]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.1}, [1]),
        ({"top_p": 0.5}, [1, 3]),  # 0.43 + 0.39
        ({"top_p": 0.9}, [0, 1, 3]),  # + 0.10
        ({"top_k": 2, "top_p": 0.5}, [1]),  # of the two left the first has 0.52
    ],
)
def test_top_k_and_top_p_keep_the_likely_and_their_proportions(settings, kept):
    shares = draws(**settings)
    expected = torch.zeros(5)
    expected[kept] = LOGITS[kept].softmax(-1)
    assert shares.nonzero().ravel().tolist() == kept
    torch.testing.assert_close(shares, expected, atol=0.015, rtol=0)


def test_equal_seeds_equal_tokens():
    assert torch.equal(draws(num=500, seed=1), draws(num=500, seed=1))
    assert not torch.equal(draws(num=500, seed=1), draws(num=500, seed=2))


def test_low_temperature_is_greedy_and_finite():
    logits = torch.tensor([[10.0, 60_000.0, 59_999.0]])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        generator = torch.Generator().manual_seed(0)
        assert sample(logits.to(dtype)[:, :2], 1e-6, 0, 0.9, generator).tolist() == [1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((-0.1, 0, 1.0), r"temperature -0\.1 must be at least 0"),
        ((float("nan"), 0, 1.0), "temperature nan"),
        ((1.0, -1, 1.0), "top_k -1 must be at least 0"),
        ((1.0, 0, 0.0), r"top_p 0\.0 must be above 0"),
        ((1.0, 0, 1.1), r"top_p 1\.1 must be above 0 and at most 1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        sample(LOGITS[None], *settings, None)
