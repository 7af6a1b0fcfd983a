"""The shipped model: small, of the shape that conf says, as good as its card says, and nearly as good in int8."""

import re

import pytest
import torch
import yaml

from framework.measure.perplexity import window_losses
from framework.measure.quality import compare_models
from framework.models.loading import load_model
from framework.paths import ROOT
from framework.quantization import int8_weight_only

FOLDER = ROOT / "models" / "tiny"
MAX_BYTES = 8 * 10**6
ROW = re.compile(r"^\| `heldout\.txt`, ([\d,]+) bytes \| (\d+) \| .* \| ([\d.]+) \|$", re.MULTILINE)


def load():
    config = yaml.safe_load((ROOT / "conf/model/tiny.yaml").read_text())
    return load_model(**{key: value for key, value in config.items() if not key.startswith("_")}, device="cpu")


@pytest.fixture(scope="module")
def text():
    return torch.tensor(list((FOLDER / "heldout.txt").read_bytes()))


def test_it_is_small_and_says_under_which_licence():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) <= MAX_BYTES
    assert {path.name for path in FOLDER.iterdir()} == {
        *("config.json", "model.safetensors", "heldout.txt", "README.md", "LICENSE")
    }


@pytest.mark.nightly
def test_the_cards_perplexity_to_three_digits(text):
    num_bytes, window, perplexity = ROW.search((FOLDER / "README.md").read_text()).groups()
    assert len(text) == int(num_bytes.replace(",", ""))
    losses = window_losses(load(), text, window_len=int(window), stride=int(window), batch_size=16)
    assert losses.perplexity == pytest.approx(float(perplexity), rel=5e-4)


@pytest.mark.nightly  # tests/quantization/test_tiny_quality.py looks at every scheme every time
def test_int8_weights_are_within_one_percent_of_float32(text):
    model = int8_weight_only.quantize(load())
    summary = compare_models(model, load(), text[:8192], window_len=1024, stride=1024, batch_size=8).summary()
    assert -0.01 < summary["perplexity_change_low"] < summary["perplexity_change_high"] < 0.01
