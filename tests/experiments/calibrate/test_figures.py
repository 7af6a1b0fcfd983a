"""Predicted against measured steps, and the spread of their ratios."""

import numpy as np
import pandas as pd

from experiments.calibrate.figures import predicted_against_measured, ratios_by_kind

STEPS = pd.DataFrame(
    {"kind": ["decode", "decode", "prompt"], "measured": [0.001, 0.002, 0.03], "median": [0.001, 0.001, 0.03]}
)
STEPS = STEPS.assign(mean=STEPS["median"], low=0.9 * STEPS["median"], high=1.1 * STEPS["median"])


def test_a_point_per_step_in_milliseconds():
    [axes] = predicted_against_measured(STEPS, "title").axes
    decode, prompt = (collection.get_offsets() for collection in axes.collections)
    assert np.allclose(decode, [[1, 1], [2, 1]])
    assert np.allclose(prompt, [[30, 30]])


def test_a_panel_per_kind_with_the_shares_of_its_ratios():
    decode, prompt = ratios_by_kind(STEPS, "title").axes
    assert np.allclose(decode.lines[0].get_xdata(), [1, 2])
    assert np.allclose(prompt.lines[0].get_xdata(), [1])
