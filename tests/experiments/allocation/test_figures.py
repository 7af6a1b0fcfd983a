"""What the figures of the study draw, number by number."""

import numpy as np
import pytest

from experiments.allocation.figures import memory_over_time, memory_shares, running_requests, thinned
from tests.experiments.allocation.test_tables import REPORTED, make_rows, make_steps


def test_shares_are_stacked_and_the_reported_ones_dotted():
    rows = make_rows()
    (axes,) = memory_shares(rows, REPORTED).axes
    tokens, reserved = axes.containers[:2]
    assert [bar.get_height() for bar in tokens] == pytest.approx([50, 90])
    assert [bar.get_y() for bar in reserved] == pytest.approx([50, 90])
    (line,) = [one for one in axes.collections if one.get_label() == "tokens, reported"]
    assert np.unique(line.get_segments()[0][:, 1]) == [20.0]


@pytest.mark.parametrize(("reported", "num_series"), [(REPORTED, 2), ({}, 1)])
def test_running_requests_stand_beside_the_reported_ones(reported, num_series):
    (axes,) = running_requests(make_rows(), reported).axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert heights == [[5.0, 10.0], [2.0, 6.0]][:num_series]


def test_over_time_every_arm_has_a_panel():
    figure = memory_over_time({"max": make_steps(), "paged": make_steps()}, "all at once")
    assert [axes.get_title() for axes in figure.axes] == ["max", "paged"]
    assert [len(axes.collections) for axes in figure.axes] == [6, 6]


def test_many_steps_are_drawn_as_means():
    steps = make_steps().sample(10_000, replace=True, random_state=0, ignore_index=True)
    table = thinned(steps)
    assert len(table) == 400
    assert table["tokens"].mean() == pytest.approx((steps["num_token_slots"] / 40).mean())
