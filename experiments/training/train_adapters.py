"""Train one adapter per kind of text beside a frozen byte-level model, and measure each on every kind.

Losses are of the adapters as written, read back, on held-out samples that are written beside them.
"""

import shutil
from collections.abc import Collection
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from torch import Tensor
from typing_extensions import Unpack

from experiments.training.adapters_card import adapters_card, losses_matrix
from experiments.training.corpus import Corpus, Document
from experiments.training.figures import loss_curve
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
from experiments.training.renderings import Rendering, python, rendered_sample
from experiments.training.training import Training, check_training, train
from framework.build import Decoder, MakeModel
from framework.checks import check_threads
from framework.config import describe
from framework.lora.adapter_file import WEIGHT_FILE, save_adapter
from framework.lora.adapters import load_adapter
from framework.lora.attached import attached, initial_rows
from framework.lora.layout import Layout, make_layout
from framework.report.finish import Findings, finish
from framework.study.files import Json
from framework.study.place import open_place

BASE, BASE_KIND = "none", "python"  # the row without an adapter; the kind that the model was trained on
CAPTION = "Nats/byte on held-out text of each kind; the rows are the adapters"


def run(
    *,
    text: partial[Corpus],
    kinds: dict[str, Rendering],
    rank: int,
    targets: list[str] | None,
    model: MakeModel,
    train_num_bytes: int,
    sample_num_bytes: int,
    num_threads: int | None,
    device: str,
    output_dir: str,
    **training: Unpack[Training],
) -> None:
    """Write `adapters/` (a folder per kind in PEFT's format, `heldout/`, README), the losses and their curves.

    `kinds` maps an adapter's name to the rendering of a Python file that it is trained on. Only the adapters train, in
    float32 and with scaling 1; they are written in float16. Ctrl-C ends the training of one adapter early.
    """
    check_training(training)
    check_names(kinds)
    limit_threads(num_threads)
    place, sequence_length = open_place(device, output_dir), training["sequence_length"]
    corpus, loaded = text(), model(dtype="float32", device=place.device)
    check_model(loaded, sequence_length)
    layout = make_layout(loaded, targets)
    samples = render_samples(corpus.held_out, kinds, sample_num_bytes)
    held_out = {kind: to_tensor(excerpts, place.device) for kind, (excerpts, _) in samples.items()}
    shipped, curves, num_train_bytes = place.output_dir / "adapters", {}, {}
    shutil.rmtree(shipped, ignore_errors=True)
    losses = measure_kinds(BASE, loaded, held_out, sequence_length)
    for kind, rendering in kinds.items():
        train_text = to_tensor(rendered_sample(corpus.train, rendering, train_num_bytes)[0], place.device)
        num_train_bytes[kind] = len(train_text)
        place.say(f"{kind}: {len(train_text):,} bytes to train on, {len(held_out[kind]):,} held out")
        rows, curve = train_adapter(loaded, layout, rank, train_text, held_out[kind], training, place.console)
        curves[kind] = curve.assign(adapter=kind)
        save_adapter(shipped / kind, rows.half().cpu(), layout, alpha=float(rank))
        with attached(layout, load_adapter(shipped / kind, layout, torch.float32).to(place.device)):
            losses += measure_kinds(kind, loaded, held_out, sequence_length)
    configured = {"text": text, "kinds": kinds, "model": model, "rank": rank, "targets": targets, **training}
    record = {
        "config": describe(configured | {"train_num_bytes": train_num_bytes, "sample_num_bytes": sample_num_bytes}),
        "environment": place.environment,
        "text": {"folder": str(corpus.folder), "digest": corpus.digest},
        "samples": {kind: names for kind, (_, names) in samples.items()},
        "num_parameters": sum(a.numel() + b.numel() for a, b in layout.parts(rows).values()),
        "num_train_bytes": num_train_bytes,
        "num_bytes": {kind: (shipped / kind / WEIGHT_FILE).stat().st_size for kind in kinds},
        "seconds": {kind: curve["elapsed"].iloc[-1] for kind, curve in curves.items()},
        "losses": losses,
    }
    write_texts(shipped, {kind: excerpts for kind, (excerpts, _) in samples.items()}, adapters_card(record))
    copy_licence(corpus, shipped, place.say)
    title = f"adapters of rank {rank}, {record['num_parameters']:,} parameters each"
    finish(place, title, find(record, pd.concat(curves.values())))
    place.say(f"wrote {shipped}")


def limit_threads(num_threads: int | None) -> None:
    check_threads("num_threads", num_threads)
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def render_samples(
    documents: list[Document], kinds: dict[str, Rendering], num_bytes: int
) -> dict[str, tuple[bytes, list[str]]]:
    """Per kind, and of the text that the model was trained on, an excerpt and the names of its documents."""
    return {
        kind: rendered_sample(documents, rendering, num_bytes)
        for kind, rendering in {BASE_KIND: python, **kinds}.items()
    }


def write_texts(folder: Path, excerpts: dict[str, bytes], card: str) -> None:
    """The held-out samples, and the README."""
    (folder / "heldout").mkdir()
    for kind, text in excerpts.items():
        (folder / "heldout" / f"{kind}.txt").write_bytes(text)
    (folder / "README.md").write_text(card)


def check_names(kinds: Collection[str]) -> None:
    """Raise ValueError for a kind that cannot be a folder's name, or that is another row or column of the table."""
    taken = {BASE, BASE_KIND, "heldout"}
    for kind in kinds:
        if not kind.isidentifier() or kind in taken:
            raise ValueError(f"kinds.{kind} must be letters, digits and '_', and none of {', '.join(sorted(taken))}")
    if not kinds:
        raise ValueError("kinds is empty: name at least one kind of text to train an adapter on")


def train_adapter(
    model: Decoder,
    layout: Layout,
    rank: int,
    text: Tensor,
    held_out: Tensor,
    training: Training,
    console: Console,
) -> tuple[Tensor, pd.DataFrame]:
    """The adapter's rows at the lowest held-out loss, and all evaluations."""
    rows = initial_rows(layout, rank, training["seed"]).to(text.device).requires_grad_(True)
    loss_of = partial(losses_of, model, held_out, window=training["sequence_length"])
    progress = StepProgress(console, training)
    with attached(layout, rows), progress:
        evaluations = train(model, text, [rows], **training, evaluate=lambda: loss_of().mean, on_step=progress.advance)
        curve, best = keep_best(evaluations, {"rows": rows}, progress)
    return best["rows"], pd.DataFrame([asdict(one) for one in curve])


def measure_kinds(adapter: str, model: Decoder, held_out: dict[str, Tensor], window: int) -> list[dict[str, object]]:
    """The losses of the model as it is on every kind's sample, in windows that know nothing of each other."""
    return [
        {"adapter": adapter, "kind": kind, **describe_losses(losses_of(model, sample, window=window))}
        for kind, sample in held_out.items()
    ]


def find(record: Json, curves: pd.DataFrame) -> Findings:
    losses = pd.DataFrame(record["losses"])
    figures = {
        f"loss_{adapter}": loss_curve(curve, str(adapter))
        for adapter, curve in curves.groupby("adapter", sort=False)
        if len(curve) > 1
    }
    return Findings(
        figures={name: (figure, LOSS_CAPTION) for name, figure in figures.items()},
        tables={CAPTION: losses_matrix(losses)},
        files={"curves.csv": curves, "losses.csv": losses, "record.json": record},
    )
