"""Embeddings, tied heads and groups of the int8 weights."""

import torch

from framework.quantization import int8_weight_only, zero_point
from tests.quantization.schemes import whole_int8
from tests.quantization.small_models import make_model


def test_a_tied_head_stays_tied_or_keeps_the_original():
    model = whole_int8(make_model("llama"))
    assert model.lm_head.weight is model.embed_tokens.weight
    model = zero_point.quantize(make_model("llama"))
    assert model.lm_head.weight_uint8 is model.embed_tokens.weight_uint8
    model = int8_weight_only.quantize(make_model("llama"), head=True)
    assert (model.lm_head.weight.dtype, model.embed_tokens.weight.dtype) == (torch.int8, torch.float32)
