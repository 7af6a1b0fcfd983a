"""What the figure of generated outputs draws."""

import pandas as pd

from experiments.generate.figures import output_times


def test_the_figure_has_a_curve_per_output_in_milliseconds():
    adapters = [None, None, "html"]
    times = pd.DataFrame({"output": [0, 0, 1], "adapter": adapters, "token": [1, 2, 1], "elapsed": [0.02, 0.004, 0.03]})
    [axes] = output_times(times, "here").axes
    assert [line.get_xydata().tolist() for line in axes.get_lines()] == [[[1, 20], [2, 4]], [[1, 30]]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("output token", "time of this token (ms)")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["output 1", "output 2, html"]
