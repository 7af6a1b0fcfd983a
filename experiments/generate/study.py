"""Text in, text out: prompts through the same scheduler and engine as every replay, one JSON line each."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from typing_extensions import Unpack

from experiments.generate.figures import output_times
from framework.build import ChangeModel, MakeScheduler, make_scheduler, replay_trace, resolve_device
from framework.core import Request, Sequence
from framework.lora.adapters import RandomAdapters
from framework.measure.replay_tables import step_table
from framework.models.tokenizer import Tokenizer, load_tokenizer
from framework.paths import locate
from framework.report.finish import conclude
from framework.study.progress import make_console
from framework.study.provenance import environment
from framework.study.sweep import Setup
from framework.trace.prompts import make_requests

EXAMPLE = "The quick brown fox"
RANDOM = " (random numbers)"
COST = "Decode steps with and without the schema, medians over repeats in turns"
CAPTION = "Time of every token since the one before it, one curve per output; outputs of one batch share its steps."
DEFINITIONS = {
    "Tokens/s": "output tokens / E2E, of this prompt among the others",
    "Time of a token": "since the one before; the first one's since all prompts arrived",
}
COST_DEFINITIONS = {
    "Cost of a schema": "the median over the repeats of their medians, and its 96% interval, from the third least to "
    "the third most of twelve; the difference is of the two runs of one repeat",
}
NUM_REPEATS = 12  # of the runs with and without
# The third least and most of twelve: the median is between them with 1 - 2 · 79 / 2^12 = 96%
LOW, HIGH = 2 / 11, 9 / 11
REMEDY = "raise num_output_tokens, or limit strings and lists (maxLength, maxItems)"


def run(
    *,
    prompts: list[str] | None,
    prompt_token_ids: list[list[int]],
    num_output_tokens: int,
    ignore_eos: bool,
    adapter: str | list[str | None] | None,
    json_schema: dict[str, Any] | str | None,
    quantization: ChangeModel,
    lora: ChangeModel,
    scheduler: MakeScheduler,
    **setup: Unpack[Setup],
) -> None:
    """Write `generations.jsonl`: token ids, text and per-token times (s, on the virtual clock) of every prompt.

    All prompts arrive at once. `prompt_token_ids` are taken as they are; without any `prompts` beside them no tokenizer
    is loaded and `text` is null. With neither there is an example. `ignore_eos` false ends an output at the model's
    end-of-sequence token. `adapter` is the id of one of lora.adapters (None: the base model); of a list, each answers
    every prompt. Outputs are documents of `json_schema`: the schema, its JSON text, or a file that has it; what that
    costs is measured. The times are in `token_times.csv` and a figure, too.
    """
    if prompts is None:
        prompts = [] if prompt_token_ids else [EXAMPLE]
    if num_output_tokens < 1:
        raise ValueError(f"num_output_tokens must be at least 1, not {num_output_tokens}")
    schema = None if json_schema is None else read_schema(json_schema)
    resolved = resolve_device(setup["device"])
    loaded = lora(quantization(setup["model"](device=resolved)))
    tokenizer = load_tokenizer(loaded.config) if prompts else None
    encoded = list(prompt_token_ids)
    if tokenizer is not None:
        encoded += [list(tokenizer.encode(prompt)) for prompt in prompts]
    stop_token_ids = frozenset() if ignore_eos and schema is None else frozenset(loaded.config.eos_token_ids)
    requests = make_requests(encoded, num_output_tokens, loaded.config.max_model_len, stop_token_ids)
    torch_engine = setup["engine"](model=loaded)
    adapter_ids = adapter if isinstance(adapter, list) else [adapter]
    if any(adapter_ids) and not torch_engine.num_adapter_slots:
        raise ValueError(
            f"adapter={adapter!r} needs lora=segmented, gathered or loop, and a saved adapter: preset=adapters has "
            "those of the built-in model, lora=segmented adapters@lora.adapters=saved lora.adapters.path=DIR any others"
        )
    requests = [replace(request, json_schema=schema) for request in with_adapters(requests, adapter_ids)]
    sequences, _ = replay_trace(requests, make_scheduler(scheduler, torch_engine), torch_engine)
    path, console = Path(setup["output_dir"]) / "generations.jsonl", make_console()
    notes = random_notes(lora, adapter_ids)
    tables = {"Generations": write_generations(path, sequences, tokenizer)}
    if notes:
        shown = tables["Generations"]["adapter"]
        tables["Generations"]["adapter"] = (shown + RANDOM).where(shown.notna(), None)
    if schema is not None:
        tables[COST] = cost_table(schema_cost(sequences, scheduler, torch_engine))
        notes.append(describe_documents(sequences, tokenizer or load_tokenizer(loaded.config)))
        notes.append(describe_cost(tables[COST]))
    surroundings, times = environment(resolved), time_table(sequences)
    title = f"generations on {surroundings['device']}"
    conclude(
        console,
        path.parent,
        title=title,
        environment=surroundings,
        files={"token_times.csv": times},
        figures={"token_times": (output_times(times, title), CAPTION)},
        tables=tables,
        notes=notes,
        definitions=DEFINITIONS | (COST_DEFINITIONS if schema is not None else {}),
    )
    console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def read_schema(json_schema: dict[str, Any] | str) -> str:
    """The JSON text of a schema that is given as it is, as text, or as a file; ValueError where there is no such file.

    Whether it is a schema, the engine finds out.
    """
    if isinstance(json_schema, dict):
        return json.dumps(json_schema)
    if json_schema.lstrip().startswith("{"):
        return json_schema
    path = locate(json_schema)
    if not path.is_file():
        raise ValueError(f"json_schema={json_schema} is no file: give one, or the schema itself")
    return path.read_text()


def with_adapters(requests: list[Request], adapter_ids: list[str | None]) -> list[Request]:
    """Every request with each adapter, in this order."""
    if not adapter_ids:
        raise ValueError("adapter=[] answers no prompt; null is the model without an adapter")
    pairs = [(request, adapter_id) for request in requests for adapter_id in adapter_ids]
    return [
        replace(request, request_id=index, adapter_id=adapter_id) for index, (request, adapter_id) in enumerate(pairs)
    ]


def random_notes(lora: Any, adapter_ids: list[str | None]) -> list[str]:
    """A sentence, if the adapters that these outputs have are drawn at random: any id is one then."""
    adapters, merged = lora.keywords.get("adapters"), lora.keywords.get("adapter_id")
    names = list(dict.fromkeys(name for name in [*adapter_ids, merged] if name is not None))
    if adapters is None or adapters.func is not RandomAdapters or not names:
        return []
    return [f"{', '.join(names)}: random numbers, not trained; adapters@lora.adapters=saved reads saved adapters"]


def write_generations(path: Path, sequences: list[Sequence], tokenizer: Tokenizer | None) -> pd.DataFrame:
    """One JSON line per sequence; the same as a table, without the times of each token. `text` has no stop token."""
    rows = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for sequence in sequences:
            prompt = sequence.request.prompt_token_ids
            assert prompt is not None
            output = sequence.output_token_ids
            record = {
                "adapter_id": sequence.request.adapter_id,
                "prompt_token_ids": list(prompt),
                "output_token_ids": output,
                "text": tokenizer.decode(output[:-1] if is_stopped(sequence) else output) if tokenizer else None,
                "token_times": sequence.token_times,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            shown = tokenizer.decode(list(prompt)) if tokenizer else str(list(prompt))
            rows.append(
                {
                    "adapter": sequence.request.adapter_id,
                    "prompt": repr(shown),
                    "output": repr(record["text"] if tokenizer else str(sequence.output_token_ids)),
                    "TTFT (ms)": 1e3 * sequence.token_times[0],
                    "tokens/s": len(sequence.token_times) / sequence.token_times[-1],
                }
            )
    return pd.DataFrame(rows)


def is_stopped(sequence: Sequence) -> bool:
    return sequence.output_token_ids[-1] in sequence.request.stop_token_ids


def time_table(sequences: list[Sequence]) -> pd.DataFrame:
    """One row per token: `output` (from 0), `adapter`, `token` (from 1) and `elapsed`, the time (s) since the last."""
    rows = [
        {"output": index, "adapter": sequence.request.adapter_id, "token": token, "elapsed": time - before}
        for index, sequence in enumerate(sequences)
        for token, (before, time) in enumerate(pairwise([0.0, *sequence.token_times]), start=1)
    ]
    return pd.DataFrame(rows)


def schema_cost(sequences: list[Sequence], scheduler: Any, engine: Any) -> pd.DataFrame:
    """Decode steps of the same batches with the schema and without it, in turns.

    One row per (schema, repeat): medians (ms) per step and per output token; NaN where no step decodes.
    """
    constrained = [sequence.request for sequence in sequences]
    free = [
        replace(
            sequence.request,
            json_schema=None,
            stop_token_ids=frozenset(),
            num_output_tokens=len(sequence.output_token_ids),
        )
        for sequence in sequences
    ]
    runs = {"with": constrained, "without": free}
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
