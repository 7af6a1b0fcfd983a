"""Which batches the warm-up runs."""

from functools import partial

import pytest

from framework.core import Request
from framework.engine.torch_engine import warm_up
from framework.kernels.tiles import Shape, choose_byte_tiles, choose_dynamic_tiles, choose_tiles
from tests.kernels.test_linear import REAL


@pytest.mark.parametrize("capacity", [40, 200, 4096])
def test_the_warm_up_reaches_blocks_that_are_compiled(capacity):
    sizes = warm_up.warm_up_sizes(64, capacity, 2048, num_blocks=2048, block_size=16, on_gpu=True)
    rows = [num_seqs * length for num_seqs, length in sizes]
    assert max(rows) > 256
    assert rows == sorted(rows)
    assert all(length < capacity for _, length in sizes)


@pytest.mark.parametrize("num_rows", [1, 8, 40, 256])
def test_no_more_rows_are_warmed_than_a_step_has(num_rows):
    sizes = warm_up.warm_up_sizes(8, 4096, num_rows, num_blocks=2048, block_size=16, on_gpu=True)
    assert max(num_seqs * length for num_seqs, length in sizes) == max(num_rows, 8)


@pytest.mark.parametrize("name", [name for name in REAL if "head" not in name])
@pytest.mark.parametrize(
    "choose",
    [choose_tiles, choose_byte_tiles, partial(choose_byte_tiles, group_size=128), choose_dynamic_tiles],
    ids=["floating point", "bytes", "groups", "bytes by bytes"],
)
def test_every_cut_of_a_product_is_warmed(choose, name):
    """A number of rows with tiles of its own would be compiled when it is measured."""
    weight_rows, in_features, (norm, _, activation, _) = REAL[name]
    gated = activation == "silu_gate"
    shape = Shape(1, weight_rows // (1 + gated), in_features, gated, norm is not None)
    cuts = {rows: choose(shape._replace(rows=rows), 132) for rows in range(1, 600)}
    most = 64 if choose is choose_tiles else 599
    warmed = {cuts[min(length, 599)] for length in warm_up.LENGTHS}
    assert not [rows for rows, tiles in cuts.items() if rows <= most and tiles not in warmed]


def test_the_most_rows_of_a_step():
    requests = [Request(0, 0.0, 30, 10), Request(1, 0.0, 5, 6)]
    assert warm_up.most_rows(requests, 1, None) == 40  # a preempted one computes its output anew
    assert warm_up.most_rows(requests, 64, None) == 80  # padded to the longest
    assert warm_up.most_rows([], 64, None) == 64


def test_no_step_has_more_rows_than_its_budget():
    requests = [Request(0, 0.0, 30, 10), Request(1, 0.0, 5, 6)]
    assert warm_up.most_rows(requests, 64, 70) == 70
    assert warm_up.most_rows(requests, 64, 16) == 64  # every seat may decode
    assert warm_up.most_rows(requests, 2, 2048) == 80


def test_every_kind_of_step_is_warmed():
    steps = [*warm_up.warm_up_steps(5, 3, num_blocks=10, block_size=4)]
    kinds = [(step.phase, step.starts, step.num_tokens) for step in steps]
    assert kinds == [
        ("prefill", [0] * 5, [3] * 5),
        ("prefill", [1] * 5, [2] * 5),
        ("decode", [3] * 5, [1] * 5),
        ("mixed", [3, 3, 0, 0, 0], [1, 1, 3, 3, 3]),
    ]
    assert [step.phase for step in warm_up.warm_up_steps(1, 3, num_blocks=10, block_size=4)][-1] == "decode"
