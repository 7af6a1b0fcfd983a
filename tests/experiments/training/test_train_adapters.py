"""experiment=train_adapters as a user calls it, on a few lines of text and a model of random weights."""

import json

import pandas as pd
import pytest
import torch

from framework.lora.adapters import load_adapter
from framework.lora.attached import attached
from framework.lora.layout import make_layout
from framework.measure.perplexity import window_losses
from framework.models.loading import load_model
from tests.report.html_page import Page, check_page

CONFIG = {
    "model_type": "llama", "vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128,
    "rope_theta": 5000.0, "tie_word_embeddings": True,
}  # fmt: skip
SMALL = [
    "model.config={" + ", ".join(f"{key}: {str(value).lower()}" for key, value in CONFIG.items()) + "}",
    *(
        "model.weights=random",
        "device=cpu",
        "~kinds.bytecode",
        "~kinds.syntax_tree",
        "rank=4",
        "targets=null",
        "learning_rate=0.1",
    ),
    *("batch_size=2", "sequence_length=32", "sample_num_bytes=500", "num_warm_up_steps=1", "text.held_out_share=0.3"),
]


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for index in range(12):
        (folder / f"{index}.py").write_text(f"def function_{index}():\n    return {index}\n" * 4)
    return f"text.folder={folder}"


@pytest.mark.usefixtures("drawn")
def test_writes_adapters_and_what_they_are_good_for(cli, text, tmp_path):
    code, output = cli("experiment=train_adapters", *SMALL, text, "num_steps=20", "eval_interval=8")
    assert code == 0, output
    folder = tmp_path / "outputs/train_adapters"
    losses = pd.read_csv(folder / "losses.csv").pivot_table("nats_per_byte", "adapter", "kind")
    assert set(losses) == {"python", "html", "json"}
    assert set(losses.index) == {"none", "html", "json"}
    assert (losses.loc["none", ["html", "json"]] > 5.5).all()  # that of guessing
    assert losses.loc["html", "html"] < losses.loc["none", "html"] - 0.05
    assert losses.loc["json", "json"] < losses.loc["none", "json"] - 0.05
    curves = pd.read_csv(folder / "curves.csv")
    assert curves["num_steps"].tolist() == [0, 8, 16, 20] * 2
    assert {path.name for path in (folder / "adapters").iterdir()} == {"html", "json", "heldout", "README.md"}
    check_page(Page(folder / "report.html"), folder)
    assert "LICENSE.txt: add the text's licence" in output
    card = (folder / "adapters/README.md").read_text()
    assert f"| **{losses.loc['html', 'html']:.3f}** |" in card
    options = {"path": None, "weights": "random", "config": CONFIG, "seed": 0, "max_model_len": None}
    model = load_model(**options, dtype="float32", device="cpu")
    layout = make_layout(model, json.loads((folder / "record.json").read_text())["config"]["targets"])
    held_out = torch.tensor(list((folder / "adapters/heldout/json.txt").read_bytes()))
    with attached(layout, load_adapter(folder / "adapters/html", layout, torch.float32)):
        again = window_losses(model, held_out, window_len=32, stride=32, batch_size=5)
    assert again.mean == pytest.approx(losses.loc["html", "json"], rel=1e-5)


def test_the_same_seed_gives_the_same_adapters(cli, text, tmp_path):
    def weights(name):
        code, output = cli(
            "experiment=train_adapters", *SMALL, text, "~kinds.json", "num_steps=2", f"output_dir={name}"
        )
        assert code == 0, output
        return (tmp_path / name / "adapters/html/adapter_model.safetensors").read_bytes()

    assert weights("one") == weights("another")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_steps=0", "num_steps=0 is not a whole number of at least 1"),
        ("num_threads=0", "num_threads 0 must be from 1 to 1024"),
        ("num_threads=100000", "num_threads 100000 must be from 1 to 1024"),
        ("rank=0", "rank 0 must be at least 1"),
        ("targets=[nose]", "lora.targets names ['nose']"),
        ("kinds=null", "kinds is None"),
        ("+kinds.none=${kinds.html}", "kinds.none must be"),
        ("model.config.vocab_size=300", "vocab_size must be 256, not 300"),
        ("text.suffixes=[.txt]", "no Python source to render"),
    ],
)
def test_bad_input_is_one_clear_message(cli, text, tmp_path, override, message):
    for index in range(12):
        (tmp_path / f"text/{index}.txt").write_text(f"This is no Python, {index} times.\n")
    code, output = cli("experiment=train_adapters", *SMALL, text, "num_steps=1", override)
    assert code == 1
    assert message in output
    assert "Traceback" not in output
