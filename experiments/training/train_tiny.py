"""Train a byte-level model from scratch and write it as a checkpoint, with held-out text that its loss can be had on.

The held-out loss decides which step is kept; the losses reported are of the checkpoint as written, read back.
"""

import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from torch import Tensor
from typing_extensions import Unpack

from experiments.training.corpus import Corpus, join, sample
from experiments.training.figures import loss_curve
from experiments.training.model_card import model_card
from experiments.training.parts import (
    LOSS_CAPTION,
    StepProgress,
    check_model,
    copy_licence,
    describe_losses,
    keep_best,
    losses_of,
    to_tensor,
)
from experiments.training.training import Evaluation, Training, check_training, train
from framework.build import Decoder, MakeModel
from framework.config import describe
from framework.models.checkpoint import write_checkpoint
from framework.models.config import config_json
from framework.models.loading import load_model
from framework.report.finish import Findings, finish
from framework.study.files import Json
from framework.study.place import open_place

END_OF_DOCUMENT = 0  # the zero byte before the next one
WRITTEN_DTYPES = (torch.float16, torch.bfloat16)


def run(
    *,
    text: partial[Corpus],
    model: MakeModel,
    eval_num_bytes: int | None,
    sample_num_bytes: int,
    sample_window: int,
    device: str,
    output_dir: str,
    **training: Unpack[Training],
) -> None:
    """Write `model/` (Hugging Face format, README, held-out sample), `losses.csv`, `record.json` and the loss curve.

    `model` gives the shape, of 256 tokens; it starts from random weights. Interrupted, the best step so far is written.
    """
    check_training(training)
    evaluation = {"eval_num_bytes": eval_num_bytes, "sample_window": sample_window}
    place, sequence_length = open_place(device, output_dir), training["sequence_length"]
    corpus = text()
    loaded = model(weights="random", dtype="float32", seed=training["seed"], device=place.device)
    check_model(loaded, max(sequence_length, sample_window))
    train_text, held_out = (to_tensor(join(part), place.device) for part in (corpus.train, corpus.held_out))
    excerpts, excerpt_names = sample(corpus.held_out, sample_num_bytes)
    watched = held_out
    if eval_num_bytes is not None:
        watched = to_tensor(sample(corpus.held_out, eval_num_bytes)[0], place.device)
    place.say(f"{corpus.folder}: {len(train_text):,} bytes to train on, {len(held_out):,} held out")
    curve, best = train_model(loaded, train_text, watched, training, place.console)
    checkpoint = place.output_dir / "model"
    written = write_and_measure(
        checkpoint, loaded, best, held_out, to_tensor(excerpts, place.device), sequence_length, sample_window
    )
    record: Json = {
        "config": describe({"text": text, "model": model, **training, **evaluation}),
        "environment": place.environment,
        "text": describe_corpus(corpus, len(train_text), len(held_out)),
        "sample": {"files": excerpt_names, "num_bytes": len(excerpts), "window": sample_window},
        "num_parameters": sum(parameter.numel() for parameter in loaded.parameters()),
        "model_type": loaded.config.model_type,
        "evaluations": [asdict(one) for one in curve],
        **written,
    }
    (checkpoint / "heldout.txt").write_bytes(excerpts)
    copy_licence(corpus, checkpoint, place.say)
    (checkpoint / "README.md").write_text(model_card(record))
    place.say(f"wrote {checkpoint}")
    finish(place, title_of(record), find(record))


def train_model(
    model: Decoder, text: Tensor, watched: Tensor, training: Training, console: Console
) -> tuple[list[Evaluation], dict[str, Tensor]]:
    """All evaluations, on the `watched` text, and the state with the lowest loss on it."""
    loss_of = partial(losses_of, model, watched, window=training["sequence_length"])
    parameters: list[Tensor] = list(model.requires_grad_(True).parameters())
    with StepProgress(console, training) as progress:
        evaluations = train(
            model, text, parameters, **training, evaluate=lambda: loss_of().mean, on_step=progress.advance
        )
        return keep_best(evaluations, model.state_dict(), progress)


def write_and_measure(
    folder: Path,
    model: Decoder,
    best: dict[str, Tensor],
    held_out: Tensor,
    excerpts: Tensor,
    sequence_length: int,
    sample_window: int,
) -> dict[str, object]:
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


def title_of(record: Json) -> str:
    config = record["config"]
    return (
        f"{record['num_parameters'] / 1e6:.1f} M parameters, "
        f"{config['batch_size']} × {config['sequence_length']} bytes per step"
    )


def find(record: Json) -> Findings:
    evaluations = pd.DataFrame(record["evaluations"])
    return Findings(
        figures={"loss": (loss_curve(evaluations, title_of(record)), LOSS_CAPTION)} if len(evaluations) > 1 else {},
        tables={"Loss (nats/byte) at every evaluation; elapsed in seconds": evaluations},
        notes=[
            f"{name}: {line(record['losses'][name])}, from weights in {record['dtype']}"
            for name in ("held_out", "sample")
        ],
        files={"record.json": record, "losses.csv": evaluations},
    )


def round_to(model: Decoder, state: dict[str, Tensor], dtype: torch.dtype) -> Decoder:
    """`model` with the weights of `state` as `dtype` would keep them."""
    model.load_state_dict({name: tensor.to(dtype).float() for name, tensor in state.items()})
    return model


def write_model(folder: Path, model: Decoder, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    """`state` in `dtype`, with the zero byte as end of text; what an earlier run left is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    model.load_state_dict(state)
    tensors = {name: tensor.to(dtype) for name, tensor in model.checkpoint_tensors().items()}
    config = replace(model.config, eos_token_ids=(END_OF_DOCUMENT,))
    write_checkpoint(folder, config_json(config), tensors, prefix=model.prefix)


def describe_corpus(corpus: Corpus, num_train_bytes: int, num_held_out_bytes: int) -> dict[str, object]:
    """Where the text is from, its digest, and every file with its size and digest."""
    parts = {"train": corpus.train, "held_out": corpus.held_out}
    files = {
        part: [[document.name, len(document.content), document.digest] for document in documents]
        for part, documents in parts.items()
    }
    sizes = {"num_train_bytes": num_train_bytes, "num_held_out_bytes": num_held_out_bytes}
    return {"folder": str(corpus.folder), "digest": corpus.digest, **sizes, "files": files}


def line(losses: dict[str, object]) -> str:
    return (
        f"{losses['nats_per_byte']:.4f} nats/byte [{losses['low']:.4f}, {losses['high']:.4f}], "
        f"{losses['bits_per_byte']:.4f} bits/byte, perplexity {losses['perplexity']:.4f}"
    )


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
