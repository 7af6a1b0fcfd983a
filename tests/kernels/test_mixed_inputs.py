"""A mixed step's arrays by hand: decode rows, a chunk behind cached blocks, a padded prompt, rows of nobody."""

import numpy as np

from framework.kernels.mixed_inputs import MixedSizes, mixed_inputs

SIZES = MixedSizes(num_rows=40, num_seqs=6, num_queries_per_kv=1, num_parts=9)
TABLES = np.arange(7 * 20).reshape(7, 20)  # of blocks of 4 slots


def arrays(query_lens, context_lens, padding, seats, num_decode):
    given = [np.array(part) for part in (query_lens, context_lens, padding)]
    return mixed_inputs(*given, TABLES, np.array(seats), SIZES, num_decode=num_decode, block_size=4)


def test_rows_that_decode_and_chunks():
    step = arrays([1, 1, 6, 3], [9, 30, 16, 3], [0, 2, 0, 0], seats=[5, 1, 0, 2], num_decode=2)
    assert step["decode_seats"].tolist() == [5, 1]
    assert step["decode_lens"].tolist() == [9, 30]
    assert step["decode_padding"].tolist() == [0, 2]
    assert step["items"].T.tolist() == [[1, 0, 1], [0, 0, 1]]
    assert step["slots"].tolist() == [-1, -1, *range(10, 16), *range(160, 163), *[-1] * 29]
    # row, queries, seat, place, hidden places; the last is nobody's
    assert step["tiles"].T.tolist() == [[2, 6, 0, 10, 0], [8, 3, 2, 0, 0], [11, 29, 0, -29, 0]]
    assert (step["num_items"].tolist(), step["num_tiles"].tolist()) == ([2], [3])


def test_the_pads_of_a_prompt_are_a_segment_of_their_own():
    step = arrays([10, 10], [10, 10], [0, 4], seats=[3, 4], num_decode=0)
    assert step["tiles"].T.tolist() == [
        [0, 10, 3, 0, 0], [14, 6, 4, 4, 4], [10, 4, 4, 0, 0], [20, 20, 0, -20, 0],
    ]  # fmt: skip
    assert step["items"].shape == (3, 0)


def test_everything_fits_into_its_shape():
    rng = np.random.default_rng(0)
    for _ in range(50):
        num_seqs = int(rng.integers(1, SIZES.num_seqs + 1))
        num_decode = int(rng.integers(0, num_seqs + 1))
        query_lens = rng.integers(1, 7, num_seqs)
        query_lens[:num_decode] = 1
        padding = rng.integers(0, 3, num_seqs)
        context_lens = query_lens + rng.integers(1, 70, num_seqs)
        step = arrays(query_lens, context_lens, padding, rng.permutation(7)[:num_seqs], num_decode)
        assert step.keys() == SIZES.shapes.keys()
        for name, shape in SIZES.shapes.items():
            assert step[name].shape[:-1] == shape[:-1], name
            assert step[name].shape[-1] <= shape[-1], name
        rows = np.concatenate([np.arange(row, row + num) for row, num in step["tiles"][:2].T])
        assert sorted(rows.tolist()) == [*range(num_decode, SIZES.num_rows)]
