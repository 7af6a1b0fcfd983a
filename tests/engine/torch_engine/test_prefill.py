"""Which prompts a graph replays."""

import numpy as np
import pytest

from framework.engine.torch_engine import prefill
from framework.engine.torch_engine.inputs import StepInputs
from framework.kernels.gpu_attention import flash_inputs


@pytest.mark.parametrize(
    ("query_lens", "context_lens", "size"),
    [
        ([5], [5], 16),
        ([16], [16], 16),
        ([9, 8], [9, 8], 32),
        ([64], [64], 64),
        ([129], [129], None),  # more rows than are captured
        ([2] * 7, [2] * 7, 16),  # seven prompts and the spare rows
        ([2] * 8, [2] * 8, 128),  # one segment too many for fewer rows
        ([2] * 15, [2] * 15, 128),
        ([2] * 16, [2] * 16, None),
        ([8], [20], None),  # a chunk behind others
    ],
)
def test_which_prompts_are_replayed(query_lens, context_lens, size):
    lens = (np.array(query_lens), np.array(context_lens), np.zeros(len(query_lens), dtype=np.int64))
    rows = np.arange(sum(query_lens))
    tables = np.arange(9 * len(query_lens)).reshape(-1, 9)
    inputs = StepInputs(rows, rows, *lens, tables, np.ones(len(query_lens), dtype=bool), np.zeros_like(rows))
    arrays, _ = flash_inputs(*lens, tables, 16)
    assert prefill.size_for(inputs, arrays, [16, 32, 64, 128]) == size
    if size is None:
        return
    padded, padded_arrays = prefill.with_spare_rows(inputs, arrays, size)
    assert len(padded.token_ids) == len(padded.positions) == len(padded.adapter_slots) == size
    assert padded_arrays["slots"].tolist() == [*arrays["slots"].tolist(), *[-1] * (size - len(rows))]
    starts = padded_arrays["query_starts"].tolist()
    assert starts[: len(query_lens) + 1] == arrays["query_starts"].tolist()
    assert set(starts[len(query_lens) + 1 :]) == {size}
    assert len(starts) == prefill.max_segments(size) + 1
