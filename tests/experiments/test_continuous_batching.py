"""The ratio of two arms' durations is of the points that both have."""

import pandas as pd
import pytest

from experiments.continuous_batching import compare_durations


def test_durations_are_compared_where_both_arms_have_a_point():
    rows = [("static", 1.0, 0, 30.0), ("static", 1.0, 1, 90.0), ("continuous", 1.0, 0, 10.0), ("other", 1.0, 0, 1.0)]
    points = pd.DataFrame(rows, columns=["arm", "rate", "seed", "duration_s"])
    (line,) = compare_durations(points, ["static", "continuous"], 3.4, "lesson 3")
    assert line == "static ÷ continuous: 30.00 s ÷ 10.00 s = 3.00×   (reported: 3.4×, lesson 3)"
    apart = points[(points["arm"] != "static") | (points["seed"] == 1)]
    assert compare_durations(apart, ["static", "continuous"], 3.4, "") == [
        "static and continuous have no point in common"
    ]
    with pytest.raises(ValueError, match=r"reference.arms names fast; arms with points: continuous, other, static"):
        compare_durations(points, ["static", "fast"], 3.4, "")
