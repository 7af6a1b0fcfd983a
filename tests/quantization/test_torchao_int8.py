"""torchao's int8: as near and as small as ours."""

import copy
import sys

import pytest

from framework.engine.torch_engine.sampling import Sampling
from framework.engine.torch_engine.step_memory import step_bytes
from framework.models.footprint import footprint
from framework.quantization import int8_weight_only, torchao_int8
from tests.models.loaded_models import logits
from tests.quantization.schemes import TOKENS
from tests.quantization.small_models import CONFIGS, make_model


def test_without_torchao_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ImportError, match=r"llm-serving-replay\[torchao\]"):
        torchao_int8.quantize(make_model("llama"))


@pytest.mark.parametrize("family", CONFIGS)
def test_torchao_is_as_near_and_as_small(family):
    pytest.importorskip("torchao")
    model = make_model(family, dtype="bfloat16")
    expected = logits(copy.deepcopy(model).double(), TOKENS)
    own, theirs = int8_weight_only.quantize(copy.deepcopy(model)), torchao_int8.quantize(model)
    error = (logits(theirs, TOKENS).double() - expected).norm() / expected.norm()
    assert 1e-3 < error < 0.05
    assert footprint(theirs)["weights"] <= footprint(own)["total"]
    assert (
        step_bytes(theirs, Sampling(0.0, 0, 1.0, 0), 512, 64) > 512 * 64 * 2
    )  # its tensors take part, by their shapes
