"""Which batches the warm-up runs."""

import pytest

from framework.engine.torch_engine import warm_up


@pytest.mark.parametrize("capacity", [40, 200, 4096])
def test_the_warm_up_reaches_blocks_that_are_compiled(capacity):
    sizes = warm_up.warm_up_sizes(64, capacity, num_blocks=2048, block_size=16, on_gpu=True)
    assert max(num_seqs * length for num_seqs, length in sizes) > 256
    assert all(length < capacity for _, length in sizes)
