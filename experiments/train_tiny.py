"""Train a byte-level model from scratch and write it as a checkpoint, with held-out text that its loss can be had on.

The held-out loss decides which step is kept; the losses reported are of the checkpoint as written, read back.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from experiments.model_card import model_card
from framework.config import describe
from framework.console import REFRESH_INTERVAL, TokensPerSecond, make_console
from framework.corpus import Corpus, join, sample
from framework.models.checkpoint import write_checkpoint
from framework.models.config import config_json
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama
from framework.models.loading import load_model
from framework.models.tokenizer import NUM_BYTES
from framework.perplexity import WindowLosses, window_losses
from framework.plots_training import loss_curve
from framework.provenance import environment, resolve_device
from framework.report import conclude
from framework.training import Evaluation, train

END_OF_DOCUMENT = 0  # the zero byte before the next one
EVAL_TOKENS = 2**15  # per forward of an evaluation
WRITTEN_DTYPES = (torch.float16, torch.bfloat16)
LICENCE = "LICENSE.txt"  # in the text's folder
LOSS_CAPTION = "Loss on the train and the held-out text; the ring is the step that was kept."


def run(
    *,
    text: Any,
    model: Any,
    num_steps: int,
    batch_size: int,
    sequence_length: int,
    learning_rate: float,
    num_warm_up_steps: int,
    weight_decay: float,
    max_grad_norm: float,
    eval_interval: int,
    eval_num_bytes: int | None,
    sample_num_bytes: int,
    sample_window: int,
    seed: int,
    device: str,
    output_dir: str,
) -> None:
    """Write `model/` (Hugging Face format, README, held-out sample), `losses.csv`, `record.json` and the loss curve.

    `model` gives the shape, of 256 tokens; it starts from random weights. Interrupted, the best step so far is written.
    """
    training: dict[str, Any] = {
        "num_steps": num_steps,
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "learning_rate": learning_rate,
        "num_warm_up_steps": num_warm_up_steps,
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm,
        "eval_interval": eval_interval,
        "seed": seed,
    }
    check_counts({name: training[name] for name in ("num_steps", "batch_size", "sequence_length", "eval_interval")})
    evaluation = {"eval_num_bytes": eval_num_bytes, "sample_window": sample_window}
    console, resolved, folder = make_console(), resolve_device(device), Path(output_dir)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    corpus = text()
    loaded = model(weights="random", dtype="float32", seed=seed, device=resolved)
    check_model(loaded, max(sequence_length, sample_window))
    train_text, held_out = (to_tensor(join(part), resolved) for part in (corpus.train, corpus.held_out))
    excerpts, excerpt_names = sample(corpus.held_out, sample_num_bytes)
    watched = held_out if eval_num_bytes is None else to_tensor(sample(corpus.held_out, eval_num_bytes)[0], resolved)
    say(f"{corpus.folder}: {len(train_text):,} bytes to train on, {len(held_out):,} held out")
    with StepProgress(console, num_steps, batch_size * sequence_length) as progress:
        evaluations = train(
            loaded, train_text, list(loaded.requires_grad_(True).parameters()), **training,
            evaluate=lambda: losses_of(loaded, watched, window=sequence_length).mean, on_step=progress.advance,
        )  # fmt: skip
        curve, best = keep_best(evaluations, loaded.state_dict(), progress)
    checkpoint = folder / "model"
    written = write_and_measure(
        checkpoint, loaded, best, held_out, to_tensor(excerpts, resolved), sequence_length, sample_window
    )
    record: dict[str, Any] = {
        "config": describe({"text": text, "model": model, **training, **evaluation}),
        "environment": environment(resolved),
        "text": describe_corpus(corpus, len(train_text), len(held_out)),
        "sample": {"files": excerpt_names, "num_bytes": len(excerpts), "window": sample_window},
        "num_parameters": sum(parameter.numel() for parameter in loaded.parameters()),
        "model_type": loaded.config.model_type,
        "evaluations": [asdict(one) for one in curve],
        **written,
    }
    (checkpoint / "heldout.txt").write_bytes(excerpts)
    copy_licence(corpus, checkpoint, say)
    (checkpoint / "README.md").write_text(model_card(record))
    say(f"wrote {checkpoint}")
    leave_page(folder, record, console)


def write_and_measure(
    folder: Path,
    model: Llama | GPT2,
    best: dict[str, Tensor],
    held_out: Tensor,
    excerpts: Tensor,
    sequence_length: int,
    sample_window: int,
) -> dict[str, Any]:
    """Write the checkpoint in the dtype that changes the held-out loss least; that, and the losses of what is there."""
    loss_of = partial(losses_of, window=sequence_length)
    rounded = {dtype: loss_of(round_to(model, best, dtype), held_out).mean for dtype in WRITTEN_DTYPES}
    exact = loss_of(round_to(model, best, torch.float32), held_out).mean
    dtype = min(WRITTEN_DTYPES, key=lambda one: abs(rounded[one] - exact))
    write_model(folder, model, best, dtype)
    written = load_model(
        path=str(folder), weights="pretrained", config=None, dtype="float32", seed=0, max_model_len=None,
        device=held_out.device,
    )  # fmt: skip
    losses = {
        "float32": exact,
        **{name_of(one): loss for one, loss in rounded.items()},
        "held_out": describe_losses(loss_of(written, held_out)),
        "sample": describe_losses(losses_of(written, excerpts, window=sample_window)),
    }
    return {"dtype": name_of(dtype), "losses": losses}


def leave_page(folder: Path, record: dict[str, Any], console: Console) -> None:
    evaluations, config = pd.DataFrame(record["evaluations"]), record["config"]
    title = (
        f"{record['num_parameters'] / 1e6:.1f} M parameters, "
        f"{config['batch_size']} × {config['sequence_length']} bytes per step"
    )
    conclude(
        console,
        folder,
        title=title,
        environment=record["environment"],
        files={"record.json": record, "losses.csv": evaluations},
        figures={"loss": (loss_curve(evaluations, title), LOSS_CAPTION)} if len(evaluations) > 1 else {},
        tables={"Loss (nats/byte) at every evaluation; elapsed in seconds": evaluations},
        notes=[
            f"{name}: {line(record['losses'][name])}, from weights in {record['dtype']}"
            for name in ("held_out", "sample")
        ],
    )


class StepProgress:
    """A bar over the tokens of all steps, where there is a terminal, and a line per evaluation."""

    def __init__(self, console: Console, num_steps: int, tokens_per_step: int) -> None:
        self.console, self.num_steps, self.tokens_per_step = console, num_steps, tokens_per_step
        columns = (TextColumn("training"), BarColumn(), TokensPerSecond(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, auto_refresh=False, transient=True)
        self.task = self.bar.add_task("training", total=num_steps * tokens_per_step)
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
        self.console.print(line, highlight=False)


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
        progress.console.print(f"interrupted: going on with the best of {curve[-1].num_steps} steps", highlight=False)
    if not best:
        raise ValueError("the held-out loss was never a finite number: lower learning_rate")
    return curve, best


def check_counts(counts: dict[str, int]) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} {count} must be at least 1")


def check_model(model: Llama | GPT2, window: int) -> None:
    if model.config.vocab_size != NUM_BYTES:
        raise ValueError(f"the text is bytes: model.config.vocab_size must be 256, not {model.config.vocab_size}")
    if window > model.config.max_model_len:
        raise ValueError(f"windows of {window} bytes are longer than the model's context, {model.config.max_model_len}")


def to_tensor(text: bytes, device: torch.device) -> Tensor:
    """(num_bytes,), uint8."""
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy()).to(device)


def losses_of(model: Llama | GPT2, text: Tensor, *, window: int) -> WindowLosses:
    return window_losses(model, text.long(), window_len=window, stride=window, batch_size=max(1, EVAL_TOKENS // window))


def round_to(model: Llama | GPT2, state: dict[str, Tensor], dtype: torch.dtype) -> Llama | GPT2:
    """`model` with the weights of `state` as `dtype` would keep them."""
    model.load_state_dict({name: tensor.to(dtype).float() for name, tensor in state.items()})
    return model


def write_model(folder: Path, model: Llama | GPT2, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    """`state` in `dtype`, with the zero byte as end of text; what an earlier run left is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    model.load_state_dict(state)
    tensors = {name: tensor.to(dtype) for name, tensor in model.checkpoint_tensors().items()}
    config = replace(model.config, eos_token_ids=(END_OF_DOCUMENT,))
    prefix = "transformer." if config.model_type == "gpt2" else "model."
    write_checkpoint(folder, config_json(config), tensors, prefix=prefix)


def copy_licence(corpus: Corpus, folder: Path, say: Callable[[str], None]) -> None:
    if (corpus.folder / LICENCE).is_file():
        shutil.copyfile(corpus.folder / LICENCE, folder / "LICENSE")
    else:
        say(f"{corpus.folder} has no {LICENCE}: add the text's licence to {folder} before you share it")


def describe_corpus(corpus: Corpus, num_train_bytes: int, num_held_out_bytes: int) -> dict[str, Any]:
    """Where the text is from, its digest, and every file with its size and digest."""
    parts = {"train": corpus.train, "held_out": corpus.held_out}
    files = {
        part: [[document.name, len(document.content), document.digest] for document in documents]
        for part, documents in parts.items()
    }
    sizes = {"num_train_bytes": num_train_bytes, "num_held_out_bytes": num_held_out_bytes}
    return {"folder": str(corpus.folder), "digest": corpus.digest, **sizes, "files": files}


def describe_losses(losses: WindowLosses) -> dict[str, Any]:
    """Nats per byte with their interval, and what else they are known as."""
    low, high = losses.interval()
    bits = {"bits_per_byte": losses.mean / math.log(2), "perplexity": losses.perplexity}
    return {"nats_per_byte": losses.mean, "low": low, "high": high, **bits, "num_bytes": int(losses.num_tokens.sum())}


def line(losses: dict[str, Any]) -> str:
    return (
        f"{losses['nats_per_byte']:.4f} nats/byte [{losses['low']:.4f}, {losses['high']:.4f}], "
        f"{losses['bits_per_byte']:.4f} bits/byte, perplexity {losses['perplexity']:.4f}"
    )


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
