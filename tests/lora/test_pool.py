"""The slots on the device: what is put into one, and what is not."""

import pytest

from framework.lora.adapters import RandomAdapters
from framework.lora.layout import make_layout
from framework.lora.loop import Loop
from framework.lora.pool import pool_of, serve_adapters
from framework.quantization import zero_point
from tests.quantization.small_models import make_model


def test_slots_take_what_they_say_and_quantized_models_have_them_too():
    model = zero_point.quantize(make_model("llama"))
    assert pool_of(model) is None
    source = RandomAdapters(ranks=[2])
    serve_adapters(model, strategy=Loop, adapters=lambda: source, num_slots=3, max_rank=4)
    pool = pool_of(model)
    assert pool.slab.shape == (4, 4, make_layout(model, None).width)
    pool.put(2, pool.load("a"))
    assert (pool.slab[2, :2] != 0).any()
    assert pool.ranks.tolist() == [0, 0, 2, 0]
    pool.slab[2, 2:] = 1.0  # as a larger adapter may leave it
    pool.put(2, pool.load("b"))
    assert (pool.slab[[0, 1, 3]] == 0).all()
    assert (pool.slab[2, 2:] == 0).all()


@pytest.mark.parametrize("name", ["num_slots", "max_rank"])
def test_no_slots_or_ranks(name):
    given = {"num_slots": 1, "max_rank": 1, name: 0}
    with pytest.raises(ValueError, match=f"lora.{name} 0 must be at least 1"):
        serve_adapters(make_model("gpt2"), strategy=Loop, adapters=lambda: RandomAdapters(ranks=[1]), **given)
