"""Which of the ways a step with prompts takes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from framework.engine.torch_engine.adapters import Placement
from framework.engine.torch_engine.inputs import StepInputs
from framework.engine.torch_engine.mixed import MixedSteps
from framework.engine.torch_engine.seats import SeatTables
from framework.kernels.attention import PlainAttention
from framework.kernels.gpu_attention import FlashAttention, MixedAttention

CPU = torch.device("cpu")


def steps_of(dtype=torch.bfloat16, head_dim=64, has_window=False, has_cache=True):
    config = SimpleNamespace(
        head_dim=head_dim, num_heads=4, num_kv_heads=2, has_window=has_window, layer_windows=[8 if has_window else None]
    )
    model = SimpleNamespace(config=config, norm=SimpleNamespace(weight=torch.ones(2, dtype=dtype)))
    seats = SeatTables(4, 9, 16, CPU) if has_cache else None
    return MixedSteps(model, Placement(None), seats, block_size=16, kv_dtype=dtype)


def inputs_of(query_lens, context_lens, has_cache=True, num_decode=0):
    num_seqs, rows = len(query_lens), np.zeros(sum(query_lens), dtype=np.int64)
    lens = (np.array(query_lens), np.array(context_lens), np.zeros(num_seqs, dtype=np.int64))
    tables = np.arange(9 * 9).reshape(9, 9) if has_cache else None
    samples = np.ones(num_seqs, dtype=bool)
    return StepInputs(rows, rows, *lens, tables, np.arange(num_seqs), samples, rows, num_decode)


@pytest.mark.parametrize(
    ("options", "lens", "way"),
    [
        ({}, ([5, 9], [5, 9]), MixedAttention),
        ({"has_cache": False}, ([5, 9], [5, 9]), FlashAttention),
        ({}, ([5, 9], [5, 12]), MixedAttention),
        ({"has_window": True}, ([5, 9], [5, 9]), MixedAttention),
        ({"has_window": True, "has_cache": False}, ([5, 9], [5, 9]), PlainAttention),
        ({"dtype": torch.float32}, ([5, 9], [5, 12]), PlainAttention),
        ({"head_dim": 80}, ([5, 9], [5, 12]), PlainAttention),
    ],
)
def test_ways(options, lens, way):
    inputs = inputs_of(*lens, has_cache=options.get("has_cache", True))
    laid_out = steps_of(**options).lay_out(inputs, {"rows": inputs.sampled_rows})
    (make_attention,) = laid_out.compute.args
    assert isinstance(make_attention(laid_out.send()), way)


def test_the_smallest_size_that_holds_the_step_is_replayed_with_any_mix_inside():
    steps = steps_of()
    steps.sizes, steps.is_replayed = [16, 32, 64], True
    for lens, size in [(([5], [5]), 16), (([16], [20]), 16), (([1, 1, 15], [9, 9, 15]), 32), (([60, 4], [60, 4]), 64)]:
        inputs = inputs_of(*lens, num_decode=lens[0].count(1))
        laid_out = steps.lay_out(inputs, {"rows": inputs.sampled_rows})
        assert laid_out.compute.args == (size,)
        steps._read.send()
        read = steps._read.on_device
        assert (read["slots"][:size] >= 0).sum() == sum(lens[0]) - inputs.num_decode
    inputs = inputs_of([65], [65])
    (make_attention,) = steps.lay_out(inputs, {"rows": inputs.sampled_rows}).compute.args
    assert callable(make_attention)
