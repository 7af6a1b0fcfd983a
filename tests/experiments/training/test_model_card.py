"""The card of a trained model has the numbers of its record."""

import pytest

from experiments.training.model_card import model_card

LOSSES = {"nats_per_byte": 1.25, "low": 1.0, "high": 1.5, "bits_per_byte": 1.75, "perplexity": 3.5}
RECORD = {
    "config": {
        "text": {"folder": None}, "num_steps": 20, "batch_size": 2, "sequence_length": 32, "learning_rate": 0.01,
        "weight_decay": 0.1, "seed": 7,
    },
    "environment": {
        "git_commit": "0123456789", "git_dirty": True, "python": "3.11.7", "packages": {"torch": "2.11"},
        "device": "a CPU",
    },
    "text": {
        "folder": "/somewhere", "digest": "abc", "num_train_bytes": 12345, "num_held_out_bytes": 678,
        "files": {"train": [1, 2, 3], "held_out": [4]},
    },
    "losses": {"held_out": LOSSES, "sample": LOSSES, "float32": 1.2501, "float16": 1.2502, "bfloat16": 1.2503},
    "evaluations": [
        {"num_steps": step, "held_out": loss, "elapsed": 2.0 * step} for step, loss in ((0, 5), (8, 1), (20, 2))
    ],
    "sample": {"num_bytes": 500, "window": 16, "files": ["a.py", "b.py"]},
    "num_parameters": 2_970_000, "dtype": "float16", "model_type": "llama",
}  # fmt: skip


@pytest.mark.parametrize(
    "cells",
    [
        ("steps", "8 of 20 (the lowest held-out loss), 2 × 32 bytes each"),
        ("time", "40 s"),
        ("text", "3 files, 12,345 bytes: standard library of Python 3.11.7"),
        ("all 1 held-out files, 678 bytes", "32", "1.2500 [1.0000, 1.5000]", "1.7500", "3.5000"),
        ("`heldout.txt`, 500 bytes", "16", "1.2500 [1.0000, 1.5000]", "1.7500", "3.5000"),
    ],
)
def test_a_row_of_the_card(cells):
    assert f"| {' | '.join(cells)} |" in model_card(RECORD)


def test_the_commit_and_the_licence_are_those_of_the_text():
    card = model_card(RECORD)
    assert "git commit 0123456, edited" in card
    assert "Python Software" in card
    assert "`a.py`, `b.py`" in card
    own = model_card(RECORD | {"config": RECORD["config"] | {"text": {"folder": "/somewhere"}}})
    assert "Python Software" not in own
    assert "under the licence of the files in `/somewhere`" in own
