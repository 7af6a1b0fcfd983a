"""What training a model and training adapters share: progress, the best step, losses of text as bytes."""

import math
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from experiments.training.corpus import Corpus
from experiments.training.training import Evaluation, Training
from framework.build import Decoder
from framework.measure.perplexity import WindowLosses, window_losses
from framework.models.tokenizer import NUM_BYTES
from framework.study.progress import REFRESH_INTERVAL, TokensPerSecond, say

EVAL_TOKENS = 2**15  # per forward of an evaluation
LICENCE = "LICENSE.txt"  # in the text's folder
LOSS_CAPTION = "Loss on the train and the held-out text; the ring is the step that was kept."


class StepProgress:
    """A bar over the tokens of all steps, where there is a terminal, and a line per evaluation."""

    def __init__(self, console: Console, training: Training) -> None:
        self.console, self.num_steps = console, training["num_steps"]
        self.tokens_per_step = training["batch_size"] * training["sequence_length"]
        columns = (TextColumn("training"), BarColumn(), TokensPerSecond(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, auto_refresh=False, transient=True)
        self.task = self.bar.add_task("training", total=self.num_steps * self.tokens_per_step)
        self.refreshed = time.monotonic()

    def __enter__(self) -> "StepProgress":
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def advance(self) -> None:
        self.bar.advance(self.task, self.tokens_per_step)
        if time.monotonic() - self.refreshed > REFRESH_INTERVAL:
            self.bar.refresh()
            self.refreshed = time.monotonic()

    def show(self, evaluation: Evaluation) -> None:
        line = f"step {evaluation.num_steps}/{self.num_steps}: held out {evaluation.held_out:.4f} nats/byte"
        if evaluation.num_steps:
            rate = evaluation.num_steps / evaluation.elapsed
            remaining = (self.num_steps - evaluation.num_steps) / rate
            line += f", train {evaluation.train:.4f}, {rate * self.tokens_per_step:,.0f} tok/s, {remaining:.0f} s left"
        say(self.console, line)


def keep_best(
    evaluations: Iterable[Evaluation], tensors: dict[str, Tensor], progress: StepProgress
) -> tuple[list[Evaluation], dict[str, Tensor]]:
    """All evaluations and copies of `tensors` at the best; Ctrl-C ends the training. ValueError if none is finite."""
    curve: list[Evaluation] = []
    best: dict[str, Tensor] = {}
    lowest = math.inf
    try:
        for evaluation in evaluations:
            curve.append(evaluation)
            progress.show(evaluation)
            if evaluation.held_out < lowest:
                lowest = evaluation.held_out
                best = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    except KeyboardInterrupt:
        if not curve:
            raise
        say(progress.console, f"interrupted: going on with the best of {curve[-1].num_steps} steps")
    if not best:
        raise ValueError("the held-out loss was never a finite number: lower learning_rate")
    return curve, best


def check_model(model: Decoder, window: int) -> None:
    if model.config.vocab_size != NUM_BYTES:
        raise ValueError(f"the text is bytes: model.config.vocab_size must be 256, not {model.config.vocab_size}")
    if window > model.config.max_model_len:
        raise ValueError(f"windows of {window} bytes are longer than the model's context, {model.config.max_model_len}")


def to_tensor(text: bytes, device: torch.device) -> Tensor:
    """(num_bytes,), uint8."""
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy()).to(device)


def losses_of(model: Decoder, text: Tensor, *, window: int) -> WindowLosses:
    return window_losses(model, text.long(), window_len=window, stride=window, batch_size=max(1, EVAL_TOKENS // window))


def copy_licence(corpus: Corpus, folder: Path, say: Callable[[str], None]) -> None:
    if (corpus.folder / LICENCE).is_file():
        shutil.copyfile(corpus.folder / LICENCE, folder / "LICENSE")
    else:
        say(f"{corpus.folder} has no {LICENCE}: add the text's licence to {folder} before you share it")


def describe_losses(losses: WindowLosses) -> dict[str, object]:
    """Nats per byte with their interval, and what else they are known as."""
    low, high = losses.interval()
    bits = {"bits_per_byte": losses.mean / math.log(2), "perplexity": losses.perplexity}
    return {"nats_per_byte": losses.mean, "low": low, "high": high, **bits, "num_bytes": int(losses.num_tokens.sum())}
