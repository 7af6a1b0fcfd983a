"""What the schemes cost the built-in model, whose perplexity is measured beside its own in float32."""

from functools import partial

import pytest
import torch

from framework.measure.quality import compare_models, read_tokens
from framework.models.loading import load_model
from framework.paths import ROOT
from framework.quantization import fp8, int8_dynamic, int8_weight_only

TINY = ROOT / "models" / "tiny"
SCHEMES = {
    "channels": int8_weight_only.quantize,
    "groups": partial(int8_weight_only.quantize, group_size=128),
    "int8": int8_dynamic.quantize,  # the windows have more rows than are computed with weights only
    "fp8": fp8.quantize,
}


def load(dtype):
    given = {"path": str(TINY), "weights": "pretrained", "config": None, "seed": 0, "max_model_len": None}
    return load_model(**given, dtype=dtype, device=torch.device("cpu"))


@pytest.mark.slow
def test_perplexity_stays_within_one_percent_and_groups_are_no_worse_than_channels():
    reference = load("float32")
    text = read_tokens(TINY / "heldout.txt", reference, 2049)
    windows = {"window_len": 1024, "stride": 1024, "batch_size": 2}
    found = {
        name: compare_models(quantize(load("bfloat16")), reference, text, **windows).summary()
        for name, quantize in SCHEMES.items()
    }
    for name, summary in found.items():
        assert abs(summary["perplexity_change"]) < 0.01, name
        assert summary["top1_agreement"] > 0.97, name
    channels, groups = found["channels"], found["groups"]
    assert groups["kl"] <= channels["kl"]
    assert groups["logit_error"] <= channels["logit_error"]
    assert groups["perplexity"] <= channels["perplexity"] * 1.0005  # less than the interval of either
