"""Training by hand: the schedule, what decays, the loss of a window, and when it is evaluated."""

import math

import pytest
import torch

from experiments.training.training import check_training, make_optimizer, schedule, train, window_loss
from framework.measure.perplexity import window_losses
from tests.quantization.small_models import make_model

TRAINING = {
    "num_steps": 5, "batch_size": 2, "sequence_length": 8, "learning_rate": 0.01, "num_warm_up_steps": 1,
    "weight_decay": 0.1, "max_grad_norm": 1.0, "eval_interval": 2, "seed": 0,
}  # fmt: skip
TEXT = torch.arange(40, dtype=torch.uint8) % 7


def run_training(model, parameters, **changes):
    steps = []
    options = TRAINING | changes
    held_out = iter(range(100))
    evaluations = list(
        train(model, TEXT, parameters, evaluate=lambda: next(held_out), on_step=lambda: steps.append(1), **options)
    )
    return evaluations, len(steps)


def test_the_rate_rises_in_a_line_and_falls_as_a_half_cosine():
    shares = [schedule(step, 6, 2) for step in range(6)]
    assert shares == pytest.approx([0.5, 1.0, 1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])


def test_matrices_decay_and_norms_do_not():
    matrix, norm = torch.ones(2, 2), torch.ones(2)
    decaying, plain = make_optimizer([norm, matrix], 0.1).param_groups
    assert (decaying["params"], decaying["weight_decay"]) == ([matrix], 0.1)
    assert (plain["params"], plain["weight_decay"]) == ([norm], 0.0)


def test_the_loss_of_a_window_is_that_of_its_predictions():
    model = make_model("llama")
    windows = TEXT[:18].long().reshape(2, 9)
    expected = window_losses(model, windows[0], window_len=9, stride=9, batch_size=1).mean
    assert window_loss(model, windows[:1]).item() == pytest.approx(expected, rel=1e-5)
    both = window_loss(model, windows).item()
    assert both == pytest.approx((expected + window_loss(model, windows[1:]).item()) / 2, rel=1e-5)


def test_it_is_evaluated_before_in_between_and_after():
    model = make_model("llama")
    parameters = list(model.requires_grad_(True).parameters())
    evaluations, num_steps = run_training(model, parameters)
    assert num_steps == 5
    assert [(one.num_steps, one.held_out) for one in evaluations] == [(0, 0), (2, 1), (4, 2), (5, 3)]
    assert math.isnan(evaluations[0].train)
    assert evaluations[-1].train < evaluations[1].train
    again = make_model("llama")
    repeated, _ = run_training(again, list(again.requires_grad_(True).parameters()))
    assert [one.train for one in repeated[1:]] == [one.train for one in evaluations[1:]]


def test_a_text_shorter_than_a_window_and_its_target_is_refused():
    model = make_model("llama")
    with pytest.raises(ValueError, match="the text has 40 tokens, a window and its target need 41"):
        run_training(model, [], sequence_length=40)


@pytest.mark.parametrize("name", ["num_steps", "batch_size", "sequence_length", "eval_interval"])
def test_counts_are_whole_numbers_from_one_on(name):
    check_training(TRAINING)
    with pytest.raises(ValueError, match=f"{name}=0 is not a whole number"):
        check_training(TRAINING | {name: 0})
