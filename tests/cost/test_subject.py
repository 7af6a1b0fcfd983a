"""What a cost model is of is read off an arm's config: neither weights nor a device are needed."""

from functools import partial

import pytest

from framework.lora.adapters import RandomAdapters
from framework.lora.loop import Loop
from framework.lora.pool import serve_adapters
from tests.cost_models import MODEL, kind_cost, target
from tests.quantization.small_models import LLAMA

ADAPTERS = partial(serve_adapters, strategy=partial(Loop), adapters=partial(RandomAdapters), num_slots=4, max_rank=8)


def test_weights_and_the_context_decide_nothing():
    other = partial(MODEL.func, **MODEL.keywords | {"seed": 7, "max_model_len": 32, "weights": "pretrained"})
    assert target(model=other).subject == target().subject
    assert target(model=other).config.max_model_len == 32


def test_differences_name_both_sides():
    other = partial(MODEL.func, **MODEL.keywords | {"config": LLAMA | {"num_hidden_layers": 3}, "dtype": "bfloat16"})
    found = target(model=other).subject.differences(target().subject)
    assert found[0] == "num_layers 3, not 2"
    assert "dtype 'bfloat16', not 'float32'" in found


def test_how_many_adapters_there_are_decides_nothing_and_how_they_are_served_does():
    served = target(lora=ADAPTERS)
    more = target(lora=partial(serve_adapters, **ADAPTERS.keywords | {"num_slots": 9}))
    assert (served.num_adapter_slots, more.num_adapter_slots) == (4, 9)
    assert served.subject == more.subject
    [difference] = served.subject.differences(target().subject)
    assert difference == "lora Loop {'max_rank': 8, 'targets': None}, not serve_base"


def test_adapters_in_kv_blocks_and_models_of_other_functions_are_refused():
    with pytest.raises(ValueError, match=r"take lora.memory=split"):
        target(lora=partial(serve_adapters, **ADAPTERS.keywords | {"memory": "unified"}))
    with pytest.raises(ValueError, match=r"not of tests.cost_models.kind_cost"):
        target(model=partial(kind_cost))
