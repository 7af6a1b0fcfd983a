"""The adapters in models/adapters: small, PEFT's, each the best on its own kind of text and seen in what it writes."""

import json
import re

import pytest
import torch

from framework.lora.adapter_file import WEIGHT_FILE
from framework.lora.adapters import load_adapter
from framework.lora.attached import attached
from framework.lora.layout import make_layout
from framework.measure.perplexity import window_logits, window_losses
from framework.models.loading import load_model
from framework.paths import ROOT

FOLDER = ROOT / "models" / "adapters"
KINDS = ["html", "json", "bytecode", "syntax_tree"]
WINDOW = 512
NUM_BYTES = 4 * WINDOW + 1  # of each sample: an eighth
MAX_WEIGHT_BYTES, MAX_SAMPLE_BYTES = 120_000, 20_000
MARKS = {"html": "</code></h3>", "json": '"type": "function"', "bytecode": " LOAD_", "syntax_tree": "ctx=Load())"}


@pytest.fixture(scope="module")
def model():
    options = {"weights": "pretrained", "config": None, "dtype": "float32", "seed": 0, "max_model_len": None}
    return load_model(path=str(ROOT / "models/tiny"), **options, device="cpu")


def held_out(kind):
    return torch.tensor(list((FOLDER / f"heldout/{kind}.txt").read_bytes()))


def attach(model, adapter):
    layout = make_layout(model, None)
    return attached(layout, load_adapter(FOLDER / adapter, layout, torch.float32))


def loss(model, text):
    return window_losses(model, text, window_len=WINDOW, stride=WINDOW, batch_size=8).mean


def test_they_are_small_and_say_under_which_licence():
    assert {path.name for path in FOLDER.iterdir()} == {*KINDS, "heldout", "README.md", "LICENSE"}
    assert all((FOLDER / kind / WEIGHT_FILE).stat().st_size <= MAX_WEIGHT_BYTES for kind in KINDS)
    samples = list((FOLDER / "heldout").iterdir())
    assert {path.stem for path in samples} == {*KINDS, "python"}
    assert all(path.stat().st_size <= MAX_SAMPLE_BYTES for path in samples)


@pytest.mark.nightly
def test_each_is_the_best_on_its_own_kind(model):
    texts = {kind: held_out(kind)[:NUM_BYTES] for kind in KINDS}
    base = {kind: loss(model, text) for kind, text in texts.items()}
    losses = {}
    for adapter in KINDS:
        with attach(model, adapter):
            losses[adapter] = {kind: loss(model, text) for kind, text in texts.items()}
    for kind in KINDS:
        others = [losses[adapter][kind] for adapter in KINDS if adapter != kind]
        assert losses[kind][kind] < min(base[kind], *others) - 0.2


@pytest.mark.nightly
def test_the_cards_loss_on_a_whole_sample(model):
    row = re.search(r"^\| `html` \| [\d.]+ \| \*\*([\d.]+)\*\* \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    with attach(model, "html"):
        assert float(row[1]) == pytest.approx(loss(model, held_out("html")), abs=1e-3)


def test_peft_gives_the_same_logits(model):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    for adapter in KINDS:
        text = held_out(adapter)[None, :100]
        base = transformers.AutoModelForCausalLM.from_pretrained(ROOT / "models/tiny", dtype=torch.float32)
        theirs = peft.PeftModel.from_pretrained(base, FOLDER / adapter).eval()
        with torch.no_grad(), attach(model, adapter):
            torch.testing.assert_close(window_logits(model, text), theirs(text).logits, atol=2e-4, rtol=2e-4)


def test_what_is_written_shows_the_adapter(cli, tmp_path):
    code, output = cli("experiment=generate", "preset=adapters", "device=cpu")
    assert code == 0, output
    lines = (tmp_path / "outputs/generate/adapters/generations.jsonl").read_text().splitlines()
    texts = {record["adapter_id"]: record["text"] for record in map(json.loads, lines)}
    marked = {adapter: [kind for kind, mark in MARKS.items() if mark in text] for adapter, text in texts.items()}
    assert marked == {None: []} | {kind: [kind] for kind in KINDS}
