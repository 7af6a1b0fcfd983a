"""What the figures of the LoRA studies draw, number by number."""

import pandas as pd
import pytest

from experiments.lora.figures import lines_by_arm, lora_ranks, steps_by_arm


def drawn(axes):
    """Label → y of every line of a panel."""
    return {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}


def test_steps_are_drawn_whole_and_as_what_they_add_to_the_base():
    elapsed = {"none": (0.001, 0.002), "loop": (0.004, 0.009)}
    rows = [(arm, size, time) for arm, times in elapsed.items() for size, time in zip((1, 8), times, strict=True)]
    left, right = steps_by_arm(pd.DataFrame(rows, columns=["arm", "num_seqs", "elapsed"]), "none", "device").axes
    assert drawn(left) == {"none": [1.0, 2.0], "loop": [4.0, 9.0]}
    assert drawn(right) == {"loop": [3.0, 7.0]}
    assert right.get_xscale() == right.get_yscale() == "linear"


def test_an_adapters_share_is_in_per_cent_and_its_steps_in_milliseconds():
    table = pd.DataFrame({"rank": [2, 4], "share": [0.0039, 0.0078], "base_elapsed": [0.001, 0.001]})
    table = table.assign(served_elapsed=[0.003, 0.004], merged_elapsed=[0.001, 0.002])
    left, right = lora_ranks(table, "device").axes
    assert next(iter(drawn(left).values())) == pytest.approx([0.39, 0.78])
    assert drawn(right) == {"beside the weights": [3.0, 4.0], "merged": [1.0, 2.0], "no adapter": [1.0, 1.0]}


def test_what_is_reported_is_dotted_and_hollow():
    rows = [("mine", 5, "rate", 0.4, False), ("mine", 20, "rate", 0.3, False), ("theirs", 5, "rate", 0.5, True)]
    values = pd.DataFrame(rows, columns=["arm", "x", "metric", "value", "is_reported"])
    [axes] = lines_by_arm(values, "adapters", {"rate": "1/s"}, "device").axes
    assert drawn(axes) == {"mine": [0.4, 0.3], "theirs": [0.5]}
    assert [(line.get_linestyle(), line.get_markerfacecolor() == "none") for line in axes.get_lines()] == [
        ("-", False), (":", True),
    ]  # fmt: skip
