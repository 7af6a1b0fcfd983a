"""What the figures of the first lessons draw: every token, and which region of batch sizes has which name."""

from math import inf

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from experiments.course.figures import batch_tradeoff, token_times


def test_the_figure_has_each_token_and_the_sum_of_all_before():
    rows = [("greedy", cache, token, 0.5 * token) for cache in ("without", "with") for token in (1, 2, 3)]
    curves = pd.DataFrame(rows, columns=["sampling", "cache", "token", "elapsed"])
    left, right = token_times(curves, {"greedy": 2}, "title").axes
    assert [line.get_ydata().tolist() for line in left.lines[:2]] == [[500.0, 1000.0, 1500.0]] * 2
    assert left.lines[2].get_xdata() == [2, 2]
    assert [line.get_ydata().tolist() for line in right.lines] == [[0.5, 1.5, 3.0]] * 2


@pytest.mark.parametrize(
    ("border", "regions"),
    [(5.0, ["bandwidth-bound", "compute-bound"]), (0.1, ["compute-bound"]), (inf, ["bandwidth-bound"])],
)
def test_the_figure_names_what_binds_within_it(border, regions):
    sizes = pd.DataFrame({"batch_size": [1, 16], "throughput": [1.0, 4.0], "latency": [1.0, 4.0], "floor": [0.5, 1.0]})
    figure = batch_tradeoff(sizes, border, "title")
    assert [text.get_text() for text in figure.axes[0].texts] == regions
    assert len(figure.axes[0].patches) == len(regions)


@pytest.mark.parametrize("border", [1.5, 8.0, 64.0])
def test_a_regions_name_fits_into_it_or_stands_upright(border):
    sizes = pd.DataFrame({"batch_size": [1, 8, 128], "throughput": [1.0, 4.0, 8.0], "latency": [1.0, 2.0, 16.0]})
    figure = batch_tradeoff(sizes.assign(floor=0.5), border, "title")
    FigureCanvasAgg(figure).draw()
    for text, region in zip(figure.axes[0].texts, figure.axes[0].patches, strict=True):
        name, shaded = text.get_window_extent(), region.get_window_extent()
        assert shaded.x0 <= name.x0 < name.x1 <= shaded.x1
        assert shaded.y0 < name.y0 < name.y1 < shaded.y1


def test_no_curve_runs_through_a_name_at_the_top():
    sizes = pd.DataFrame({"batch_size": [1, 64, 128], "throughput": [1.0, 7.0, 8.0], "latency": [1.0, 8.0, 16.0]})
    figure = batch_tradeoff(sizes.assign(floor=0.5), 23.0, "title")
    FigureCanvasAgg(figure).draw()
    below = min(text.get_window_extent().y0 for text in figure.axes[0].texts)
    for axes, metric in zip(figure.axes, ("throughput", "latency"), strict=True):
        assert axes.transData.transform((1, sizes[metric].max()))[1] < below
