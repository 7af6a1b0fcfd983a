"""What figures share: files that replace those before, intervals, and axes with round numbers."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from framework.report.plots import errors, label_batch_sizes, label_log_axis, save


def test_figures_replace_those_of_an_earlier_run_and_are_the_same_bytes(tmp_path):
    (tmp_path / "old.svg").touch()
    (tmp_path / "notes.txt").touch()
    bytes_of = []
    for _ in range(2):
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([1, 2])
        paths = save({"curve": figure}, tmp_path)
        bytes_of.append((tmp_path / "curve.svg").read_bytes())
    assert paths == [tmp_path / "curve.png", tmp_path / "curve.svg"]
    assert {path.name for path in tmp_path.iterdir()} == {"curve.png", "curve.svg", "notes.txt"}
    assert bytes_of[0] == bytes_of[1]


def test_intervals_are_distances_and_none_where_there_are_none():
    rows = pd.DataFrame({"x": [2.0, 5.0], "x_low": [1.5, np.nan], "x_high": [4.0, np.nan]})
    assert errors(rows, "x", 10.0).tolist() == [[5.0, 0.0], [20.0, 0.0]]
    assert errors(rows.assign(x_low=np.nan), "x") is None


def labels(axis):
    return [axis.get_major_formatter()(value) for value in axis.get_majorticklocs()]


def test_a_log_axis_has_round_numbers_written_out():
    axes = Figure().subplots()
    axes.loglog([3, 150], [1, 9000])
    label_log_axis(axes.xaxis)
    label_log_axis(axes.yaxis)
    assert set(labels(axes.xaxis)) >= {"5", "10", "20", "50", "100"}
    assert set(labels(axes.yaxis)) >= {"1", "10", "100", "1,000"}
    assert "20" not in labels(axes.yaxis)


def test_the_labels_of_a_narrow_log_axis_keep_apart():
    axes = Figure().subplots(1, 3)[0]
    axes.loglog([3, 160], [3, 160])
    label_log_axis(axes.xaxis)
    label_log_axis(axes.yaxis)
    assert "20" not in labels(axes.xaxis)
    assert "20" in labels(axes.yaxis)


def test_batch_sizes_are_the_ticks():
    axes = Figure().subplots()
    label_batch_sizes(axes, pd.Series([8, 1, 8, 32]))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "8", "32"]
