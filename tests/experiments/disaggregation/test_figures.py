"""What the figure of the study draws."""

import pandas as pd

from experiments.disaggregation.figures import over_scales


def test_attainment_over_scales_with_the_target_and_the_tightest():
    shares = pd.DataFrame({"arm": ["a", "a", "b", "b"], "scale": [1.0, 2.0] * 2, "attainment": [0.5, 1.0, 0.9, 1.0]})
    (axes,) = over_scales(shares, {"a": 2.0, "b": 1.0}, 0.9).axes
    lines = [line.get_ydata() for line in axes.lines]
    assert [list(lines[0]), list(lines[2])] == [[50.0, 100.0], [90.0, 100.0]]
    assert [line.get_xdata()[0] for line in (axes.lines[1], axes.lines[3])] == [2.0, 1.0]
    assert lines[4][0] == 90.0
