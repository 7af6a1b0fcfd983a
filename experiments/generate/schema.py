"""What it costs that outputs are documents of a JSON schema, and whether they are."""

import json
from dataclasses import replace

import pandas as pd

from framework.build import MakeScheduler, make_scheduler, replay_trace
from framework.contracts import Engine
from framework.core import Request, Sequence
from framework.measure.replay_tables import step_table
from framework.models.tokenizer import Tokenizer

COST = "Decode steps with and without the schema, medians over repeats in turns"
COST_DEFINITIONS = {
    "Cost of a schema": "the median over the repeats of their medians, and its 96% interval, from the third least to "
    "the third most of twelve; the difference is of the two runs of one repeat",
}
NUM_REPEATS = 12  # of the runs with and without
# The third least and most of twelve: the median is between them with 1 - 2 · 79 / 2^12 = 96%
LOW, HIGH = 2 / 11, 9 / 11
REMEDY = "raise num_output_tokens, or limit strings and lists (maxLength, maxItems)"


def schema_cost(sequences: list[Sequence], scheduler: MakeScheduler, engine: Engine) -> pd.DataFrame:
    """Decode steps of the same batches with the schema and without it, in turns.

    One row per (schema, repeat): medians (ms) per step and per output token; NaN where no step decodes.
    """
    runs = {
        "with": [sequence.request for sequence in sequences],
        "without": [without_schema(sequence) for sequence in sequences],
    }
    parts = []
    for repeat in range(NUM_REPEATS):
        for name, requests in list(runs.items())[:: -1 if repeat % 2 else 1]:
            _, steps = replay_trace(requests, make_scheduler(scheduler, engine), engine)
            parts.append(step_table(steps).assign(schema=name, repeat=repeat))
    steps = pd.concat(parts)
    decode = steps[steps["phase"] == "decode"]
    times = 1e3 * decode["elapsed"]
    columns = pd.DataFrame({"step (ms)": times, "per token (ms)": times / decode["num_output_tokens"]})
    medians = columns.groupby([decode["schema"], decode["repeat"]]).median()
    return medians.reindex(pd.MultiIndex.from_product([runs, range(NUM_REPEATS)]))


def without_schema(sequence: Sequence) -> Request:
    """Its request for as many tokens as it got, whatever they are."""
    return replace(
        sequence.request,
        json_schema=None,
        stop_token_ids=frozenset(),
        num_output_tokens=len(sequence.output_token_ids),
    )


def cost_table(medians: pd.DataFrame) -> pd.DataFrame:
    """With, without and their difference in the same repeat: medians over the repeats, with their intervals."""
    with_schema, without = medians.loc["with"], medians.loc["without"]
    rows = {"with": with_schema, "without": without, "difference": with_schema - without}
    columns = {
        f"{name}{end}": [values[name].quantile(share, interpolation=kind) for values in rows.values()]
        for name in medians
        for end, share, kind in (("", 0.5, "linear"), ("_low", LOW, "nearest"), ("_high", HIGH, "nearest"))
    }
    return pd.DataFrame({"schema": list(rows), **columns})


def describe_documents(sequences: list[Sequence], tokenizer: Tokenizer) -> str:
    """How many outputs ended, and whether all of these can be read as JSON."""
    ended = [tokenizer.decode(each.output_token_ids[:-1]) for each in sequences if is_stopped(each)]
    num_whole = sum(map(is_json, ended))
    cut = "" if len(ended) == len(sequences) else f"; the others are cut off: {REMEDY}"
    broken = f"; {len(ended) - num_whole} ended as no JSON" if num_whole < len(ended) else ""
    return f"{num_whole} of {len(sequences)} outputs are whole documents of the schema{broken}{cut}"


def is_stopped(sequence: Sequence) -> bool:
    return sequence.output_token_ids[-1] in sequence.request.stop_token_ids


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def describe_cost(cost: pd.DataFrame) -> str:
    value, low, high = (cost[f"per token (ms){end}"] for end in ("", "_low", "_high"))
    unclear = ", which these repeats cannot tell from nothing" if low[2] <= 0 <= high[2] else ""
    return (
        f"the schema costs {value[2]:.3g} ms per token [{low[2]:.3g}, {high[2]:.3g}] ({value[2] / value[1]:+.0%})"
        f"{unclear}; the median over {NUM_REPEATS} repeats and its interval"
    )
