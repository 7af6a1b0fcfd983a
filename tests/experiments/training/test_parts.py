"""What training a model and adapters share: the best step, text as tensors, losses in several units."""

import io
import math

import numpy as np
import pytest
import torch
from rich.console import Console

from experiments.training.corpus import Corpus
from experiments.training.parts import (
    StepProgress,
    check_model,
    copy_licence,
    describe_losses,
    keep_best,
    losses_of,
    to_tensor,
)
from experiments.training.training import Evaluation
from framework.measure.perplexity import WindowLosses
from tests.quantization.small_models import make_model


@pytest.fixture
def progress():
    return StepProgress(Console(file=io.StringIO()), {"num_steps": 6, "batch_size": 2, "sequence_length": 8})


def evaluations_of(losses, weight):
    """The weight is the step's number when it is evaluated; an exception among the losses is raised."""
    for step, loss in enumerate(losses):
        if isinstance(loss, BaseException):
            raise loss
        weight.fill_(step)
        yield Evaluation(step, 1.0, math.nan, loss)


@pytest.mark.parametrize(
    ("losses", "kept", "num_evaluations"),
    [([3.0, 1.0, 2.0], 1, 3), ([3.0, 2.0, KeyboardInterrupt()], 1, 2), ([math.nan, 2.0, math.nan], 1, 3)],
)
def test_the_step_with_the_lowest_loss_is_kept(progress, losses, kept, num_evaluations):
    weight = torch.zeros(2)
    curve, best = keep_best(evaluations_of(losses, weight), {"weight": weight}, progress)
    assert best["weight"].tolist() == [kept, kept]
    assert len(curve) == num_evaluations


def test_nothing_is_kept_of_losses_that_are_no_numbers_or_an_interruption_before_the_first(progress):
    weight = torch.zeros(2)
    with pytest.raises(ValueError, match="never a finite number"):
        keep_best(evaluations_of([math.nan, math.inf], weight), {"weight": weight}, progress)
    with pytest.raises(KeyboardInterrupt):
        keep_best(evaluations_of([KeyboardInterrupt()], weight), {"weight": weight}, progress)


def test_the_progress_is_in_tokens(progress):
    progress.advance()
    [task] = progress.bar.tasks
    assert (task.completed, task.total) == (16, 96)


def test_a_line_says_how_fast_and_how_long(progress):
    progress.show(Evaluation(2, 4.0, 3.5, 3.25))
    line = " ".join(progress.console.file.getvalue().split())
    assert "step 2/6: held out 3.2500 nats/byte, train 3.5000, 8 tok/s, 8 s left" in line


def test_a_text_is_its_bytes():
    tensor = to_tensor(b"ab\0", torch.device("cpu"))
    assert (tensor.tolist(), tensor.dtype) == ([97, 98, 0], torch.uint8)


def test_windows_are_evaluated_one_after_the_other():
    text = torch.arange(30, dtype=torch.uint8)
    losses = losses_of(make_model("llama"), text, window=10)
    assert losses.num_tokens.sum() == 29
    alone = losses_of(make_model("llama"), text[:11], window=10)  # the last one is a target alone
    assert losses.nll[0] == pytest.approx(alone.nll[0], rel=1e-5)


def test_losses_are_told_in_nats_and_bits():
    described = describe_losses(WindowLosses(np.full(4, 8 * math.log(2)), np.full(4, 8)))
    assert described == {
        **dict.fromkeys(("nats_per_byte", "low", "high"), pytest.approx(math.log(2))),
        "bits_per_byte": pytest.approx(1.0), "perplexity": pytest.approx(2.0), "num_bytes": 32,
    }  # fmt: skip


def test_the_model_reads_bytes_in_windows_that_fit():
    model = make_model("llama")
    with pytest.raises(ValueError, match="vocab_size must be 256, not 97"):
        check_model(model, 8)


def test_the_texts_licence_is_copied_or_asked_for(tmp_path):
    told = []
    corpus = Corpus(tmp_path, [], [])
    (tmp_path / "out").mkdir()
    copy_licence(corpus, tmp_path / "out", told.append)
    assert len(told) == 1
    (tmp_path / "LICENSE.txt").write_text("mine")
    copy_licence(corpus, tmp_path / "out", told.append)
    assert (tmp_path / "out/LICENSE").read_text() == "mine"
    assert len(told) == 1
