"""What the figures of experiment=quantization draw, number by number."""

import pandas as pd
import pytest

from experiments.quantization.figures import decode_steps, quality_bytes
from tests.experiments.lora.test_figures import drawn


def make_models():
    models = pd.DataFrame({"arm": ["none", "bfloat16", "int8"], "total": [4e6, 2e6, 1e6]})
    for name, values in {
        "perplexity_change": [0.0, 0.001, 0.02],
        "top1_agreement": [1.0, 0.99, 0.9],
        "kl": [0.0, 0.001, 0.02],
    }.items():
        models = models.assign(**{name: values, f"{name}_low": values, f"{name}_high": values})
    return models.assign(top1_agreement_low=[1.0, 0.98, 0.8])


def test_an_arms_marks_are_its_bytes_and_what_it_loses():
    panels = quality_bytes(make_models(), "title").axes
    total, change, disagreement, divergence = (
        {int(bars[0].get_ydata()[0]): float(bars[0].get_xdata()[0]) for bars in axes.containers} for axes in panels
    )
    assert total == pytest.approx({0: 4.0, 1: 2.0, 2: 1.0})  # MB
    assert change == pytest.approx({0: 0.0, 1: 0.1, 2: 2.0})  # %
    assert disagreement == pytest.approx({1: 1.0, 2: 10.0})  # %; the reference has none to be drawn
    assert divergence == pytest.approx({1: 1.0, 2: 20.0})  # 1e-3 nats
    [bars] = panels[2].containers[1][2]  # the interval's other end is the agreement's low one
    assert bars.get_segments()[0][:, 0].tolist() == pytest.approx([10.0, 20.0])
    assert [axes.get_xscale() for axes in panels] == ["linear", "linear", "log", "log"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["none", "bfloat16", "int8"]


def test_a_step_is_in_milliseconds_and_as_many_times_as_fast_as_the_first_arms():
    rows = [("none", 8, 0.008), ("none", 1, 0.004), ("int8", 1, 0.002), ("int8", 8, 0.016)]
    left, right = decode_steps(pd.DataFrame(rows, columns=["arm", "num_seqs", "elapsed"]), "title").axes
    assert drawn(left) == {"none": [4.0, 8.0], "int8": [2.0, 16.0]}
    assert drawn(right) == {"none": [1.0, 1.0], "int8": [2.0, 0.5]}
