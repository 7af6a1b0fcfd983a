"""The card of trained adapters, and the matrix of their losses."""

import pandas as pd

from experiments.training.adapters_card import adapters_card, losses_matrix, markdown

VALUES = {
    ("none", "python"): 1.0, ("none", "json"): 3.0, ("none", "html"): 4.0,
    ("json", "python"): 2.0, ("json", "json"): 0.5, ("json", "html"): 3.5,
    ("html", "python"): 2.5, ("html", "json"): 2.75, ("html", "html"): 0.25,
}  # fmt: skip
LOSSES = [
    {"adapter": adapter, "kind": kind, "nats_per_byte": value, "low": value - 0.125, "high": value + 0.125}
    for (adapter, kind), value in VALUES.items()
]
KINDS = {"json": 100, "html": 200}
RECORD = {
    "config": {
        "kinds": {kind: {"_target_": f"renderings.{kind}"} for kind in KINDS}, "text": {"folder": None},
        "model": {"path": "models/tiny"}, "targets": ["q_proj", "v_proj"], "rank": 4, "num_steps": 20, "batch_size": 2,
        "sequence_length": 32, "learning_rate": 0.01, "weight_decay": 0.1, "seed": 7,
    },
    "environment": {
        "git_commit": None, "git_dirty": False, "python": "3.11.7", "packages": {"torch": "2.11"}, "device": "a CPU",
    },
    "text": {"folder": "/somewhere"}, "losses": LOSSES, "num_parameters": 1234, "samples": {"json": ["a.py", "b.py"]},
    "num_train_bytes": dict.fromkeys(KINDS, 5000), "seconds": dict.fromkeys(KINDS, 9.0), "num_bytes": KINDS,
}  # fmt: skip


def test_the_matrix_keeps_the_order_and_its_diagonal_is_bold():
    matrix = losses_matrix(pd.DataFrame(LOSSES))
    assert matrix.columns.tolist() == ["adapter", "python", "json", "html"]
    assert matrix.to_numpy().tolist() == [
        ["none", 1.0, 3.0, 4.0],
        ["json", 2.0, 0.5, 3.5],
        ["html", 2.5, 2.75, 0.25],
    ]
    assert markdown(matrix).splitlines()[2:4] == [
        "| `none` | 1.000 | 3.000 | 4.000 |",
        "| `json` | 2.000 | **0.500** | 3.500 |",
    ]


def test_an_adapters_row_has_its_loss_before_and_after():
    card = adapters_card(RECORD)
    assert "| `json` | `renderings.json` | 5,000 | 3.000 | 0.500 | 9 | 100 |" in card
    assert "| `html` | `renderings.html` | 5,000 | 4.000 | 0.250 | 9 | 200 |" in card
    assert "json [0.375, 0.625], html [0.125, 0.375]" in card
    assert "1,234 parameters on q_proj, v_proj" in card
    assert "- `json.txt`: a.py, b.py" in card


def test_layers_and_commit_that_are_not_named():
    card = adapters_card(RECORD | {"config": RECORD["config"] | {"targets": None}})
    assert "parameters on all linear layers" in card
    assert "git commit unknown, Python" in card
