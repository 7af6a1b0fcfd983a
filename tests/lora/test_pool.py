"""The slots on the device: what is put into one, and what is not."""

from dataclasses import replace
from functools import partial

import pytest

from framework.engine.torch_engine import TorchEngine
from framework.lora.adapters import RandomAdapters
from framework.lora.gathered import Gathered
from framework.lora.layout import make_layout
from framework.lora.loop import Loop
from framework.lora.pool import pool_of, serve_adapters
from framework.lora.segmented import Segmented
from framework.quantization import zero_point
from framework.scheduler.continuous import ContinuousScheduler
from tests.engine.torch_engine.hand_schedules import make_requests
from tests.lora.serving_models import LargeAdapters, outputs
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
    with pytest.raises(ValueError, match=f"lora.{name}=0 is not a whole number of at least 1"):
        serve_adapters(make_model("gpt2"), strategy=Loop, adapters=lambda: RandomAdapters(ranks=[1]), **given)


def test_more_slots_than_memory_is_one_line():
    given = {"strategy": Loop, "adapters": lambda: RandomAdapters(ranks=[2]), "max_rank": 16}
    with pytest.raises(
        ValueError, match=r"100000000 adapter slots of rank 16 take [\d.]+ GiB, which cpu does not have"
    ):
        serve_adapters(make_model("llama"), num_slots=10**8, **given)


@pytest.mark.parametrize("strategy", [Loop, Gathered, Segmented])
def test_chunks_that_sample_nothing_leave_the_head_without_rows(strategy):
    """Adapters on the head and the embedding: tokens are the same in chunks of any size."""
    requests = [replace(one, adapter_id="a") for one in make_requests([9, 5, 7], [5, 4, 6])]
    requests[1] = replace(requests[1], adapter_id=None)
    found = []
    for chunk in (3, 100):
        room = {"num_slots": 1, "max_rank": 4, "targets": ["lm_head", "q_proj", "embed_tokens"]}
        model = serve_adapters(
            make_model("llama"), strategy=strategy, adapters=lambda: LargeAdapters(ranks=[4]), **room
        )
        engine = TorchEngine(model, block_size=4, num_blocks=40)
        scheduler = partial(ContinuousScheduler, max_num_seqs=3, max_num_batched_tokens=chunk)
        found.append(outputs(engine, requests, scheduler)[0])
    assert found[0] == found[1]
    base = TorchEngine(make_model("llama"), block_size=4, num_blocks=40)
    plain = outputs(base, [replace(one, adapter_id=None) for one in requests])[0]
    assert [same == other for same, other in zip(found[0], plain, strict=True)] == [False, True, False]
