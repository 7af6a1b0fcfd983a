"""The decode step's ends equal plain PyTorch, empty rows and equal logits included."""

import pytest
import torch

from framework.kernels.decode_step import NO_TOKEN, begin_rows, finish_rows, plain_begin_rows, plain_finish_rows

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("num_rows", [1, 5, 130])
@pytest.mark.parametrize("block_size", [7, 16])
def test_begin_rows(num_rows, block_size):
    generator = torch.Generator().manual_seed(num_rows)
    num_seats, max_blocks = 2 * num_rows + 1, 9
    context_lens = torch.randint(0, block_size * max_blocks + 1, (num_rows,), generator=generator)
    padding = (context_lens * torch.rand(num_rows, generator=generator)).int()
    rows = torch.stack(
        [
            torch.randperm(num_seats - 1, generator=generator)[:num_rows].where(context_lens > 0, num_seats - 1),
            context_lens,
            padding,
            torch.randint(0, 1000, (num_rows,), generator=generator).where(context_lens > 0, 0),
        ]
    ).to(DEVICE, torch.int32)
    last_tokens = torch.randint(0, 50_000, (num_seats,), generator=generator).to(DEVICE)
    tables = torch.full((2, num_seats, max_blocks), -1, dtype=torch.int32, device=DEVICE)
    wide = torch.full((4, num_rows + 3), -7, dtype=torch.int32, device=DEVICE)
    wide[:, :num_rows] = rows
    options = {"block_size": block_size, "max_position": 40}
    expected = plain_begin_rows(rows, tables[0], last_tokens, **options)
    found = begin_rows(wide[:, :num_rows], tables[1], last_tokens, **options)
    assert torch.equal(torch.stack(expected), torch.stack(found))
    assert torch.equal(*tables)


@pytest.mark.parametrize(("num_rows", "vocab_size"), [(1, 97), (3, 2048), (4, 5003)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finish_rows(num_rows, vocab_size, dtype):
    logits = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    logits[0, vocab_size // 2 :] = logits.max() + 1  # the first of equals
    seats = torch.arange(num_rows - 1, -1, -1, dtype=torch.int32, device=DEVICE)
    results = []
    for finish in (plain_finish_rows, finish_rows):
        sampled, last_tokens = torch.full((2, num_rows + 2), -1, device=DEVICE)
        finish(logits, seats, sampled, last_tokens)
        results.append(torch.stack([sampled, last_tokens]))
    assert torch.equal(*results)
    assert results[0][0, 0] == vocab_size // 2


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 2500, 5002])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_are_not_finite_have_no_token(value, place, dtype):
    logits = torch.randn(3, 5003, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    logits[1, place] = value
    for finish in (plain_finish_rows, finish_rows):
        sampled, last_tokens = torch.full((2, 3), -7, device=DEVICE)
        finish(logits, torch.arange(3, dtype=torch.int32, device=DEVICE), sampled, last_tokens)
        assert (sampled == NO_TOKEN).tolist() == [False, True, False]
        assert ((last_tokens >= 0) & (last_tokens < 5003)).all()
        assert torch.equal(sampled[::2], logits[::2].argmax(-1))
    logits[1] = value
    finish_rows(logits, torch.arange(3, dtype=torch.int32, device=DEVICE), sampled, last_tokens)
    assert sampled[1] == NO_TOKEN
    assert 0 <= last_tokens[1] < 5003
