"""What the figure of training draws."""

import math

import pandas as pd
import pytest

from experiments.training.figures import loss_curve


def test_both_losses_are_drawn_from_the_first_step_on_and_the_lowest_has_a_ring():
    losses = pd.DataFrame({"num_steps": [0, 8, 16, 20], "train": [math.nan, 3.0, 2.0, 1.0]})
    figure = loss_curve(losses.assign(held_out=[5.5, 3.1, 2.2, 2.4]), "title")
    [axes] = figure.axes
    train, held_out, ring = axes.get_lines()
    assert train.get_xydata().tolist() == [[8, 3.0], [16, 2.0], [20, 1.0]]
    assert held_out.get_xydata().tolist() == [[8, 3.1], [16, 2.2], [20, 2.4]]
    assert ring.get_xydata().tolist() == [[16, 2.2]]
    [bits] = axes.child_axes
    figure.draw_without_rendering()
    assert bits.get_ylim() == pytest.approx([limit / math.log(2) for limit in axes.get_ylim()])
