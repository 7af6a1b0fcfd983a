"""Long rows are split, in few items more than rows, and the device plans what the host would."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings

from framework.kernels.decode_plan import MAX_SPLITS, MIN_KEYS, decode_items, decode_plan, plain_decode_plan


def test_rows_are_split_where_they_are_long_and_programs_would_idle():
    lens = np.array([MIN_KEYS, 4 * MIN_KEYS + 1, 1])
    assert decode_items(lens, 1).T.tolist() == [[1, 0, 1], [0, 0, 1], [2, 0, 1]]
    assert decode_items(lens, 9).T.tolist() == [[0, 0, 1], *([1, split, 4] for split in range(4)), [2, 0, 1]]
    assert decode_items(lens[:0], 9).shape == (3, 0)


def test_a_row_far_longer_than_the_others_is_split_however_many_these_are():
    assert decode_items(np.full(64, 1024), 33)[2].tolist() == [1] * 64
    row, split, num_splits = decode_items(np.array([*[1024] * 64, 8192]), 33)
    assert num_splits[row == 64].tolist() == [4] * 4
    assert split[row == 64].tolist() == [0, 1, 2, 3]
    assert num_splits[row < 64].tolist() == [1] * 64


@settings(deadline=None)
@given(st.lists(st.integers(1, 20_000), max_size=70), st.integers(1, 70))
def test_there_are_at_most_so_many_items_more_than_rows(lens, num_parts):
    row, split, num_splits = decode_items(np.array(lens, dtype=np.int64), num_parts)
    assert len(row) <= len(lens) + num_parts
    assert sorted(zip(row.tolist(), split.tolist(), strict=True)) == [
        (index, part) for index in range(len(lens)) for part in range(max(num_splits[row == index]))
    ]


def test_rows_of_one_length_are_not_split_if_there_are_as_many_as_parts():
    assert decode_items(np.full(66, 8192), 66)[2].tolist() == [1] * 66


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 32, 66, 128, 129, 1000])
def test_the_plan_of_the_device_is_that_of_the_host_on_cuda(num_rows):
    rng = np.random.default_rng(num_rows)
    for most in (1, 300, 131_072):
        lens = torch.from_numpy(rng.integers(0, most + 1, num_rows).astype(np.int32)).cuda()
        lens[0] = 100_000
        for num_parts in (1, 33, 132, 500):
            assert torch.equal(decode_plan(lens, num_parts), plain_decode_plan(lens, num_parts))


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs in Triton's interpreter without CUDA")
@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2000) | st.just(700), min_size=1, max_size=70), st.integers(1, 140))
@example([131_072] * 300, 3)
@example([131_072, *[0] * 300], 140)
@example([0], 1)
@example([640, 128, 384], 1)  # halves
def test_the_plan_of_the_device_is_that_of_the_host(lens, num_parts):
    pytest.importorskip("triton")
    context_lens = torch.tensor(lens, dtype=torch.int32)
    plan = decode_plan(context_lens, num_parts)
    assert torch.equal(plan, plain_decode_plan(context_lens, num_parts))
    row, split, num_splits = plan
    assert ((split < num_splits) == (torch.arange(len(row)) < num_splits[split == 0].sum())).all()
    assert num_splits.max() <= MAX_SPLITS
