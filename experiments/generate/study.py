"""Text in, text out: prompts through the same scheduler and engine as every replay, one JSON line each."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
from typing_extensions import Unpack

from experiments.generate.figures import output_times
from experiments.generate.schema import (
    COST,
    COST_DEFINITIONS,
    cost_table,
    describe_cost,
    describe_documents,
    schema_cost,
)
from experiments.generate.tables import Generation, generation, generations_table, time_table
from framework.build import ChangeModel, make_scheduler, replay_trace
from framework.checks import whole
from framework.contracts import Engine
from framework.core import Request, Sequence
from framework.engine.modelled import check_executes
from framework.lora.service import service_of
from framework.models.tokenizer import load_tokenizer
from framework.paths import locate
from framework.report.finish import Findings, finish
from framework.study.arguments import Serving
from framework.study.files import locked, write_atomically
from framework.study.place import open_place
from framework.trace.prompts import make_requests

EXAMPLE = "The quick brown fox"
RANDOM = " (random numbers)"
CAPTION = "Time of every token since the one before it, one curve per output; outputs of one batch share its steps."
DEFINITIONS = {
    "Tokens/s": "output tokens / E2E, of this prompt among the others",
    "Time of a token": "since the one before; the first one's since all prompts arrived",
}


def run(
    *,
    prompts: list[str] | None,
    prompt_token_ids: list[list[int]],
    num_output_tokens: int,
    ignore_eos: bool,
    adapter: str | list[str | None] | None,
    json_schema: dict[str, object] | str | None,
    **serving: Unpack[Serving],
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
    whole("num_output_tokens", num_output_tokens)
    check_executes(serving["engine"])
    schema = None if json_schema is None else read_schema(json_schema)
    place, adapter_ids = open_place(serving["device"], serving["output_dir"]), listed(adapter)
    loaded = serving["lora"](serving["quantization"](serving["model"](device=place.device)))
    tokenizer = load_tokenizer(loaded.config) if prompts else None
    encoded = [*prompt_token_ids, *(list(tokenizer.encode(prompt)) for prompt in prompts if tokenizer)]
    stop_token_ids = frozenset() if ignore_eos and schema is None else frozenset(loaded.config.eos_token_ids)
    requests = make_requests(encoded, num_output_tokens, loaded.config.max_model_len, stop_token_ids)
    engine = serving["engine"](model=loaded)
    check_adapters(adapter_ids, engine)
    requests = [replace(request, json_schema=schema) for request in with_adapters(requests, adapter_ids)]
    sequences, _ = replay_trace(requests, make_scheduler(serving["scheduler"], engine), engine)
    records = [generation(sequence, tokenizer) for sequence in sequences]
    path = place.output_dir / "generations.jsonl"
    write_generations(path, records)
    title = f"generations on {place.device_name}"
    findings = find(sequences, generations_table(records, tokenizer), random_notes(serving["lora"], adapter_ids), title)
    if schema is not None:
        cost = cost_table(schema_cost(sequences, serving["scheduler"], engine))
        documents = describe_documents(sequences, tokenizer or load_tokenizer(loaded.config))
        findings = with_cost(findings, cost, documents)
    finish(place, title, findings)
    place.say(f"wrote {path}")


def find(sequences: list[Sequence], generations: pd.DataFrame, notes: list[str], title: str) -> Findings:
    """The outputs and their times; `notes` are on adapters that are drawn at random."""
    if notes:
        adapters = generations["adapter"]
        generations = generations.assign(adapter=(adapters + RANDOM).where(adapters.notna(), None))
    times = time_table(sequences)
    return Findings(
        figures={"token_times": (output_times(times, title), CAPTION)},
        tables={"Generations": generations},
        notes=notes,
        definitions=DEFINITIONS,
        files={"token_times.csv": times},
    )


def with_cost(findings: Findings, cost: pd.DataFrame, documents: str) -> Findings:
    """What the schema costs, beside whether the outputs are documents of it."""
    return replace(
        findings,
        tables={**findings.tables, COST: cost},
        notes=[*findings.notes, documents, describe_cost(cost)],
        definitions={**findings.definitions, **COST_DEFINITIONS},
    )


def listed(adapter: str | list[str | None] | None) -> list[str | None]:
    return adapter if isinstance(adapter, list) else [adapter]


def read_schema(json_schema: dict[str, object] | str) -> str:
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
    return path.read_text(encoding="utf-8")


def check_adapters(adapter_ids: list[str | None], engine: Engine) -> None:
    """ValueError for adapters that the engine has no slots for."""
    if any(adapter_ids) and not engine.num_adapter_slots:
        named = ", ".join(repr(name) for name in adapter_ids if name is not None)
        raise ValueError(
            f"adapter={named} needs lora=segmented, gathered or loop, and a saved adapter: preset=adapters has "
            "those of the built-in model, lora=segmented adapters@lora.adapters=saved lora.adapters.path=DIR any others"
        )


def with_adapters(requests: list[Request], adapter_ids: list[str | None]) -> list[Request]:
    """Every request with each adapter, in this order."""
    if not adapter_ids:
        raise ValueError("adapter=[] answers no prompt; null is the model without an adapter")
    pairs = [(request, adapter_id) for request in requests for adapter_id in adapter_ids]
    return [
        replace(request, request_id=index, adapter_id=adapter_id) for index, (request, adapter_id) in enumerate(pairs)
    ]


def random_notes(lora: ChangeModel, adapter_ids: list[str | None]) -> list[str]:
    """A sentence, if the adapters that these outputs have are drawn at random: any id is one then."""
    service = service_of(lora)
    names = list(dict.fromkeys(name for name in [*adapter_ids, service.merged] if name is not None))
    if not service.are_random or not names:
        return []
    return [f"{', '.join(names)}: random numbers, not trained; adapters@lora.adapters=saved reads saved adapters"]


def write_generations(path: Path, records: list[Generation]) -> None:
    """One JSON line each."""
    with locked(path.parent):
        write_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
