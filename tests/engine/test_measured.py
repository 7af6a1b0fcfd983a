"""Which engines a study may time, and the model's own forward with an adapter."""

import pytest
import torch

from framework.engine.measured import measured
from framework.engine.torch_engine import TorchEngine
from framework.lora.gathered import Gathered
from framework.lora.loop import Loop
from framework.measure.perplexity import window_logits
from tests.fake_engine import FakeEngine
from tests.lora.serving_models import make_engine
from tests.quantization.small_models import make_model


def test_an_engine_that_computes_its_steps_is_measured():
    engine = make_engine()
    assert measured(engine) is engine


def test_an_engine_without_a_model_is_refused():
    with pytest.raises(ValueError, match="FakeEngine"):
        measured(FakeEngine())


@torch.inference_mode()
@pytest.mark.parametrize("strategy", [Loop, Gathered])
def test_the_model_itself_takes_an_adapter(strategy):
    engine, tokens = make_engine(strategy=strategy), torch.arange(5)[None]
    logits, sizes = [], []
    for name in engine.adapter_names(2):
        sizes.append(engine.use_adapter(name, tokens.numel()))
        logits.append(window_logits(engine.model, tokens))
    assert (logits[0] - logits[1]).abs().max() > 0.1
    assert set(sizes) <= {min(sizes), 4 * min(sizes)}  # ranks 2 and 8


def test_without_slots_there_are_no_adapters():
    engine = TorchEngine(make_model("llama"), num_blocks=4)
    assert (engine.adapter_names(3), engine.use_adapter("a", 4)) == ([], 0)
