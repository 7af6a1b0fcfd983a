"""Training a decoder or an adapter on one long text: AdamW (arXiv:1711.05101), random windows, cosine schedule.

Weights stay float32; on a GPU the forward is bfloat16 where autocast has it so. All random starts are drawn beforehand,
so that the same seed reads the same windows on any device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import TypedDict, Unpack

from framework.build import Decoder
from framework.checks import whole
from framework.measure.perplexity import window_logits

BETAS = (0.9, 0.95)


class Training(TypedDict):
    """How long, on what, and how fast; `eval_interval` is in steps."""

    num_steps: int
    batch_size: int  # windows of a step
    sequence_length: int  # tokens of a window
    learning_rate: float  # peak, after the warm-up
    num_warm_up_steps: int
    weight_decay: float
    max_grad_norm: float
    eval_interval: int
    seed: int


def check_training(training: Training) -> None:
    whole("num_steps", training["num_steps"])
    whole("batch_size", training["batch_size"])
    whole("sequence_length", training["sequence_length"])
    whole("eval_interval", training["eval_interval"])


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Losses in nats per token. `train` is the mean over the steps since the evaluation before; NaN at step 0."""

    num_steps: int
    elapsed: float  # seconds since the start
    train: float
    held_out: float


def train(
    model: Decoder,
    text: Tensor,
    parameters: list[Tensor],
    *,
    evaluate: Callable[[], float],
    on_step: Callable[[], None],
    **training: Unpack[Training],
) -> Iterator[Evaluation]:
    """Train on `text` (num_tokens,) in place, with an evaluation before, every `eval_interval` steps and after.

    `parameters` are leaves that `model` computes with: its own, or an adapter's. A step reads `batch_size` windows of
    `sequence_length` tokens, each at a random place. `evaluate` returns the loss on held-out text; `on_step` is called
    after each step is launched. Raises ValueError if the text is too short.
    """
    num_steps, sequence_length = training["num_steps"], training["sequence_length"]
    num_starts = len(text) - sequence_length
    if num_starts < 1:
        raise ValueError(f"the text has {len(text)} tokens, a window and its target need {sequence_length + 1}")
    optimizer = make_optimizer(parameters, training["weight_decay"])
    drawn = np.random.default_rng(training["seed"]).integers(num_starts, size=(num_steps, training["batch_size"]))
    starts = torch.from_numpy(drawn).to(text.device)
    offsets = torch.arange(sequence_length + 1, device=text.device)
    started = time.perf_counter()
    yield Evaluation(0, 0.0, math.nan, evaluate())
    losses = []
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = training["learning_rate"] * schedule(step, num_steps, training["num_warm_up_steps"])
        loss = window_loss(model, text[starts[step][:, None] + offsets].long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, training["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        on_step()
        if (step + 1) % training["eval_interval"] == 0 or step + 1 == num_steps:
            mean = torch.stack(losses).mean().item()
            losses.clear()
            yield Evaluation(step + 1, time.perf_counter() - started, mean, evaluate())


def window_loss(model: Decoder, windows: Tensor) -> Tensor:
    """Mean loss (nats per token) of predicting all but the first token of each window, (batch_size, length + 1)."""
    with torch.autocast(windows.device.type, dtype=torch.bfloat16, enabled=windows.device.type == "cuda"):
        logits = window_logits(model, windows[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


def schedule(step: int, num_steps: int, num_warm_up_steps: int) -> float:
    """Share of the peak learning rate: up in a line, then down a half cosine to zero."""
    if step < num_warm_up_steps:
        return (step + 1) / num_warm_up_steps
    progress = (step - num_warm_up_steps) / max(1, num_steps - num_warm_up_steps)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def make_optimizer(parameters: list[Tensor], weight_decay: float) -> torch.optim.Optimizer:
    """AdamW that decays matrices, not norms and biases."""
    groups = [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": weight_decay},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=BETAS, fused=parameters[0].device.type == "cuda")
