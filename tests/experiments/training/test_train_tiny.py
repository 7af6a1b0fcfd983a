"""experiment=train_tiny as a user calls it, on a few lines of text."""

import json

import pandas as pd
import pytest
import torch
import transformers

from framework.measure.perplexity import window_logits, window_losses
from framework.models.loading import load_model
from tests.report.html_page import Page, check_page

TINY = [
    "model.config={model_type: llama, vocab_size: 256, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, "
    "num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16, max_position_embeddings: 128, rope_theta: 5000.0, "
    "tie_word_embeddings: true}",
    *("device=cpu", "batch_size=2", "sequence_length=32", "num_warm_up_steps=1", "text.held_out_share=0.3"),
    *("sample_num_bytes=500", "sample_window=32", "learning_rate=0.01"),
]


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for index in range(12):
        (folder / f"{index}.py").write_text(f"def function_{index}():\n    return {index}\n" * 8)
    return f"text.folder={folder}"


def load(path):
    options = {"weights": "pretrained", "config": None, "seed": 0, "max_model_len": None}
    return load_model(path=str(path), dtype="float32", device="cpu", **options)


@pytest.mark.usefixtures("drawn")
def test_writes_a_checkpoint_that_everything_reads(cli, text, tmp_path):
    code, output = cli("experiment=train_tiny", *TINY, text, "num_steps=20", "eval_interval=8")
    assert code == 0, output
    folder = tmp_path / "outputs/train_tiny"
    losses = pd.read_csv(folder / "losses.csv")
    assert losses["num_steps"].tolist() == [0, 8, 16, 20]
    assert losses["held_out"].iloc[-1] < losses["held_out"].iloc[0] - 0.5
    assert {path.name for path in (folder / "figures").iterdir()} == {"loss.png", "loss.svg"}
    assert {path.name for path in (folder / "model").iterdir()} == {
        *("config.json", "model.safetensors", "README.md", "heldout.txt")
    }
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert [row[0] for row in page.rows] == ["num_steps", "0", "8", "16", "20"]
    record = json.loads((folder / "record.json").read_text())
    assert "no LICENSE.txt: add the text's licence" in output
    model = load(folder / "model")
    assert model.config.eos_token_ids == (0,)
    sample = (folder / "model/heldout.txt").read_bytes()
    tokens = torch.tensor(list(sample))
    reported = record["losses"]["sample"]
    again = window_losses(model, tokens, window_len=32, stride=32, batch_size=5)
    assert again.mean == pytest.approx(reported["nats_per_byte"], rel=1e-5)
    assert f"{again.perplexity:.3f}" in (folder / "model/README.md").read_text()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(tokens[None, :100]).logits
        torch.testing.assert_close(window_logits(model, tokens[None, :100]), expected, atol=1e-4, rtol=1e-4)
    options = ["model=local", "model.path=outputs/train_tiny/model", "model.dtype=float32", "prompts=[def]"]
    code, output = cli("experiment=generate", *options, "device=cpu", "num_output_tokens=5")
    assert code == 0, output


def test_the_same_seed_gives_the_same_losses(cli, text, tmp_path):
    def losses(seed):
        options = ["num_steps=2", "eval_interval=1", f"seed={seed}", "eval_num_bytes=200"]
        code, output = cli("experiment=train_tiny", *TINY, text, *options)
        assert code == 0, output
        return pd.read_csv(tmp_path / "outputs/train_tiny/losses.csv").drop(columns="elapsed")

    first = losses(0)
    assert first.equals(losses(0))
    assert not first.equals(losses(1))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_steps=0", "num_steps=0 is not a whole number of at least 1"),
        ("batch_size=-1", "batch_size=-1 is not a whole number of at least 1"),
        ("model.config.vocab_size=300", "vocab_size must be 256, not 300"),
        ("sequence_length=129", "windows of 129 bytes are longer than the model's context, 128"),
        ("text.folder=nowhere", "no folder of text at nowhere"),
    ],
)
def test_bad_input_is_one_clear_message(cli, text, override, message):
    code, output = cli("experiment=train_tiny", *TINY, text, "num_steps=1", override)
    assert code == 1
    assert message in output
    assert "Traceback" not in output


def test_an_interruption_writes_the_best_so_far(cli, text, tmp_path, monkeypatch):
    calls = []

    def interrupt(progress):
        calls.append(progress)
        if len(calls) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr("experiments.training.train_tiny.StepProgress.advance", interrupt)
    code, output = cli("experiment=train_tiny", *TINY, text, "num_steps=20", "eval_interval=2")
    assert code == 0, output
    assert "interrupted: going on with the best of 4 steps" in output
    assert "4 of 20 (the lowest held-out loss)" in (tmp_path / "outputs/train_tiny/model/README.md").read_text()
    load(tmp_path / "outputs/train_tiny/model")
