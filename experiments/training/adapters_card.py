"""The README.md beside trained adapters: what they were trained on, under which licence, how, and how well they do."""

import datetime

import pandas as pd

from framework.study.files import Json

CARD = """\
# {num_adapters} adapters of the byte-level model

Trained on {date} by `python run.py experiment=train_adapters` (git commit {git_commit:.7}{dirty}, Python {python},
torch {torch}, {device}) beside the frozen weights of `{base}`. Each has learnt one kind of text, so that the
right one can be told from the others by its loss, and by what it writes:
`python run.py experiment=generate preset=adapters`.

| | |
|---|---|
| format | PEFT's: rank {rank}, scaling 1, float16, {num_parameters:,} parameters on {targets} |
| steps | {num_steps} of {batch_size} × {sequence_length} bytes; kept is the one with the lowest held-out loss |
| optimizer | AdamW, peak learning rate {learning_rate:g}, weight decay {weight_decay:g}, seed {seed} |

| adapter | its text is what this writes | bytes of it | held-out loss before | after | training, s | weights, bytes |
|---|---|---|---|---|---|---|
{adapters}

## Every adapter on every kind of text

Nats per byte of `heldout/<kind>.txt`, computed in float32 from the files as they are here, in windows of
{sequence_length} bytes. `none` is the model without an adapter, `python` the kind of text that it was trained on.

{matrix}

95% intervals of the numbers in bold, over windows: {intervals}.
`framework.measure.perplexity.window_losses(model, text, window_len={sequence_length}, stride={sequence_length},
batch_size=16)`
gives them again.

## Licence

{licence}
The adapters are under the licence of this project (Apache-2.0). The held-out samples have the beginnings of:

{names}
"""
PYTHON_LICENCE = """\
The texts, and so the files in `heldout/`, are derived from the standard library of Python {python}, copyright © 2001
Python Software Foundation and others, under the PSF License Agreement (https://docs.python.org/3/license.html and
`LICENSE` here): `python.txt` is source as it is, cut at the end of a line; the others were made from such source by
`experiments/training/renderings.py`, and cut likewise."""
OTHER_LICENCE = "The texts, and so the files in `heldout/`, are under the licence of the files in `{folder}`."


def losses_matrix(losses: pd.DataFrame) -> pd.DataFrame:
    """Adapters × kinds in the order of `losses`, nats per byte."""
    matrix = losses.pivot(index="adapter", columns="kind", values="nats_per_byte")  # noqa: PD010
    return matrix.loc[losses["adapter"].unique(), losses["kind"].unique()].rename_axis(columns=None).reset_index()


def adapters_card(record: Json) -> str:
    """Markdown from the record of experiment=train_adapters."""
    config, environment = record["config"], record["environment"]
    losses = pd.DataFrame(record["losses"])
    of = {(row["adapter"], row["kind"]): row for row in record["losses"]}
    kinds = list(config["kinds"])
    rows = [
        f"| `{kind}` | `{config['kinds'][kind]['_target_']}` | {record['num_train_bytes'][kind]:,} | "
        f"{of['none', kind]['nats_per_byte']:.3f} | {of[kind, kind]['nats_per_byte']:.3f} | "
        f"{record['seconds'][kind]:.0f} | {record['num_bytes'][kind]:,} |"
        for kind in kinds
    ]
    intervals = [f"{kind} [{of[kind, kind]['low']:.3f}, {of[kind, kind]['high']:.3f}]" for kind in kinds]
    is_python = config["text"]["folder"] is None
    return CARD.format(
        num_adapters=len(kinds),
        date=datetime.datetime.now(datetime.UTC).date(),
        git_commit=environment["git_commit"] or "unknown",
        dirty=", edited" if environment["git_dirty"] else "",
        python=environment["python"],
        torch=environment["packages"]["torch"],
        device=environment["device"],
        base=config["model"]["path"],
        num_parameters=record["num_parameters"],
        adapters="\n".join(rows),
        matrix=markdown(losses_matrix(losses)),
        intervals=", ".join(intervals),
        licence=(PYTHON_LICENCE if is_python else OTHER_LICENCE).format(
            python=environment["python"], folder=record["text"]["folder"]
        ),
        names="\n".join(f"- `{kind}.txt`: {', '.join(names)}" for kind, names in record["samples"].items()),
        targets=", ".join(config["targets"]) if config["targets"] else "all linear layers",
        **{key: config[key] for key in ("rank", "num_steps", "batch_size", "sequence_length", "learning_rate")},
        **{key: config[key] for key in ("weight_decay", "seed")},
    )


def markdown(matrix: pd.DataFrame) -> str:
    """The diagonal in bold."""
    lines = ["| " + " | ".join(matrix.columns) + " |", "|---" * len(matrix.columns) + "|"]
    for row in matrix.to_dict("records"):
        adapter = row.pop("adapter")
        cells = [f"**{loss:.3f}**" if adapter == kind else f"{loss:.3f}" for kind, loss in row.items()]
        lines.append("| " + " | ".join([f"`{adapter}`", *cells]) + " |")
    return "\n".join(lines)
