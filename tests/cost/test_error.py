"""How far predicted seconds are from measured ones, as shares."""

import pandas as pd

from framework.cost.error import errors


def test_bias_is_of_all_seconds_and_errors_of_single_steps():
    steps = pd.DataFrame(
        {"kind": ["decode", "decode", "prompt"], "measured": [1.0, 2.0, 7.0], "median": [1.1, 2.0, 7.0]}
    )
    found = errors(steps.assign(mean=[1.0, 2.0, 8.0], low=0.5, high=[1.5, 1.9, 7.5]))
    assert found["all"]["bias"] == 11.0 / 10.0 - 1
    assert found["decode"]["bias"] == 0
    assert round(found["decode"]["median"], 6) == 0.05
    assert (found["decode"]["coverage"], found["prompt"]["coverage"]) == (0.5, 1.0)
