"""Few rows are multiplied as the weight-only scheme does."""

import copy

import torch

from framework.quantization import int8_dynamic, int8_weight_only
from tests.models.loaded_models import logits
from tests.quantization.schemes import TOKENS
from tests.quantization.small_models import make_model


def test_no_more_weight_only_rows_are_the_weight_only_scheme():
    model = make_model("llama")
    weight_only = int8_weight_only.quantize(copy.deepcopy(model))
    mixed = int8_dynamic.quantize(copy.deepcopy(model), weight_only_rows=12)
    always = int8_dynamic.quantize(model, weight_only_rows=11)
    assert torch.equal(logits(mixed, TOKENS), logits(weight_only, TOKENS))
    assert not torch.equal(logits(always, TOKENS), logits(weight_only, TOKENS))
