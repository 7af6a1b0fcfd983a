"""The README.md of a trained checkpoint: what it was trained on, under which licence, how, and how well it does."""

import datetime

from framework.study.files import Json

CARD = """\
# A byte-level language model of {num_parameters:.2f} million parameters

Trained on {date} by `python run.py experiment=train_tiny` (git commit {git_commit:.7}{dirty}, Python {python},
torch {torch}, {device}). It predicts the next byte of {subject}, and
knows nothing else: it is here so that quality can be measured without a network. Token ids are bytes; a zero byte comes
before every document.

| | |
|---|---|
| weights | `model.safetensors`, {dtype}, Hugging Face {model_type} format |
| text | {num_train_files} files, {num_train_bytes:,} bytes: {folder} |
| SHA-256 of the text | `{digest}` |
| steps | {best_step} of {num_steps} (the lowest held-out loss), {batch_size} × {sequence_length} bytes each |
| optimizer | AdamW, peak learning rate {learning_rate:g}, weight decay {weight_decay:g}, seed {seed} |
| time | {elapsed:.0f} s |

Losses on text that was never trained on, computed in float32 from the weights as they are here:

| text | window, bytes | nats per byte [95% interval over windows] | bits per byte | perplexity |
|---|---|---|---|---|
| all {num_held_out_files} held-out files, {held_out_num_bytes:,} bytes | {sequence_length} | {held_out} |
| `heldout.txt`, {sample_num_bytes:,} bytes | {sample_window} | {sample} |

The stride is the window: `framework.measure.perplexity.window_losses(model, text, window_len={sample_window},
stride={sample_window}, batch_size=16)` gives the last row again. With weights not rounded, all held-out files have
{float32:.4f} nats per byte; rounded to float16 {float16:.4f}, to bfloat16 {bfloat16:.4f}.

## Licence

{licence}
The weights are under the licence of this project (Apache-2.0). `heldout.txt` has the beginnings of these files:
{names}.
"""
PYTHON_LICENCE = """\
The text, and so `heldout.txt`, is from the standard library of Python {python}, copyright © 2001 Python Software
Foundation and others, under the PSF License Agreement (https://docs.python.org/3/license.html and `LICENSE` here).
Files are unchanged but for being cut at the end of a line."""
OTHER_LICENCE = "The text, and so `heldout.txt`, is under the licence of the files in {folder}."


def model_card(record: Json) -> str:
    """Markdown from the record of experiment=train_tiny."""
    config, environment, text, losses = (record[key] for key in ("config", "environment", "text", "losses"))
    best = min(record["evaluations"], key=lambda one: one["held_out"])
    is_python = config["text"]["folder"] is None
    python = environment["python"]
    source = f"standard library of Python {python}" if is_python else f"`{text['folder']}`"
    return CARD.format(
        num_parameters=record["num_parameters"] / 1e6,
        date=datetime.datetime.now(datetime.UTC).date(),
        git_commit=environment["git_commit"] or "unknown",
        dirty=", edited" if environment["git_dirty"] else "",
        python=python,
        torch=environment["packages"]["torch"],
        device=environment["device"],
        dtype=record["dtype"],
        subject="Python source and its documentation" if is_python else "such text",
        model_type=record["model_type"],
        num_train_files=len(text["files"]["train"]),
        num_held_out_files=len(text["files"]["held_out"]),
        num_train_bytes=text["num_train_bytes"],
        folder=source,
        digest=text["digest"],
        best_step=best["num_steps"],
        num_steps=config["num_steps"],
        batch_size=config["batch_size"],
        sequence_length=config["sequence_length"],
        learning_rate=config["learning_rate"],
        weight_decay=config["weight_decay"],
        seed=config["seed"],
        elapsed=record["evaluations"][-1]["elapsed"],
        held_out_num_bytes=text["num_held_out_bytes"],
        held_out=cells(losses["held_out"]),
        sample_num_bytes=record["sample"]["num_bytes"],
        sample_window=record["sample"]["window"],
        sample=cells(losses["sample"]),
        float32=losses["float32"],
        float16=losses["float16"],
        bfloat16=losses["bfloat16"],
        licence=(PYTHON_LICENCE if is_python else OTHER_LICENCE).format(python=python, folder=source),
        names=", ".join(f"`{name}`" for name in record["sample"]["files"]),
    )


def cells(losses: dict[str, object]) -> str:
    """nats with interval | bits | perplexity."""
    interval = f"{losses['nats_per_byte']:.4f} [{losses['low']:.4f}, {losses['high']:.4f}]"
    return f"{interval} | {losses['bits_per_byte']:.4f} | {losses['perplexity']:.4f}"
