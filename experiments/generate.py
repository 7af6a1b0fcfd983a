"""Text in, text out: prompts through the same scheduler and engine as every replay, one JSON line each."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from framework.console import make_console, print_frame
from framework.core import Request, Sequence
from framework.engines import make_scheduler
from framework.models.tokenizer import Tokenizer, load_tokenizer
from framework.pages import write_record
from framework.provenance import environment, resolve_device
from framework.replay import replay

EXAMPLE = "The quick brown fox"


def run(
    *,
    prompts: list[str] | None,
    prompt_token_ids: list[list[int]],
    num_output_tokens: int,
    ignore_eos: bool,
    adapter: str | list[str | None] | None,
    model: Any,
    quantization: Any,
    lora: Any,
    engine: Any,
    scheduler: Any,
    device: str,
    output_dir: str,
) -> None:
    """Write `generations.jsonl`: token ids, text and per-token times (s, on the virtual clock) of every prompt.

    All prompts arrive at once. `prompt_token_ids` are taken as they are; without any `prompts` beside them no tokenizer
    is loaded and `text` is null. With neither there is an example. `ignore_eos` false ends an output at the model's
    end-of-sequence token. `adapter` is the id of one of lora.adapters (None: the base model); of a list, each answers
    every prompt.
    """
    if prompts is None:
        prompts = [] if prompt_token_ids else [EXAMPLE]
    if num_output_tokens < 1:
        raise ValueError(f"num_output_tokens must be at least 1, not {num_output_tokens}")
    loaded = lora(quantization(model(device=resolve_device(device))))
    tokenizer = load_tokenizer(loaded.config) if prompts else None
    encoded = list(prompt_token_ids)
    if tokenizer is not None:
        encoded += [list(tokenizer.encode(prompt)) for prompt in prompts]
    stop_token_ids = frozenset() if ignore_eos else frozenset(loaded.config.eos_token_ids)
    requests = make_requests(encoded, num_output_tokens, loaded.config.max_model_len, stop_token_ids)
    torch_engine = engine(model=loaded)
    adapter_ids = adapter if isinstance(adapter, list) else [adapter]
    if any(adapter_ids) and not torch_engine.num_adapter_slots:
        raise ValueError(f"adapter={adapter!r} is served with lora=segmented, gathered or loop only")
    requests = with_adapters(requests, adapter_ids)
    served = make_scheduler(scheduler, torch_engine)
    sequences, _ = replay(requests, served, torch_engine)
    path, console = Path(output_dir) / "generations.jsonl", make_console()
    table = write_generations(path, sequences, tokenizer)
    print_frame(console, table, "generations")
    console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    surroundings = environment(torch_engine.device)
    title = f"generations on {surroundings['device']}"
    write_record(
        path.parent,
        title=title,
        environment=surroundings,
        figures={},
        tables={"Generations": table},
        definitions={"Tokens/s": "output tokens / E2E, of this prompt among the others"},
    )


def make_requests(
    prompts: list[list[int]], num_output_tokens: int, max_model_len: int, stop_token_ids: frozenset[int]
) -> list[Request]:
    """Raises ValueError naming the prompt that is empty or, with its output, longer than the context."""
    if not prompts:
        raise ValueError("nothing to generate from: give prompts=[…] or prompt_token_ids=[[…]]")
    for index, tokens in enumerate(prompts):
        if not tokens:
            raise ValueError(f"prompt {index} is empty: it needs at least one token")
        if len(tokens) + num_output_tokens > max_model_len:
            raise ValueError(
                f"prompt {index} has {len(tokens)} tokens; with {num_output_tokens} output tokens that is more than "
                f"the model's context of {max_model_len}"
            )
    return [
        Request(
            index, 0.0, len(tokens), num_output_tokens, prompt_token_ids=tuple(tokens), stop_token_ids=stop_token_ids
        )
        for index, tokens in enumerate(prompts)
    ]


def with_adapters(requests: list[Request], adapter_ids: list[str | None]) -> list[Request]:
    """Every request with each adapter, in this order."""
    if not adapter_ids:
        raise ValueError("adapter=[] answers no prompt; null is the model without an adapter")
    pairs = [(request, adapter_id) for request in requests for adapter_id in adapter_ids]
    return [
        replace(request, request_id=index, adapter_id=adapter_id) for index, (request, adapter_id) in enumerate(pairs)
    ]


def write_generations(path: Path, sequences: list[Sequence], tokenizer: Tokenizer | None) -> pd.DataFrame:
    """One JSON line per sequence; the same as a table, without the times of each token."""
    rows = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for sequence in sequences:
            prompt = sequence.request.prompt_token_ids
            assert prompt is not None
            record = {
                "adapter_id": sequence.request.adapter_id,
                "prompt_token_ids": list(prompt),
                "output_token_ids": sequence.output_token_ids,
                "text": tokenizer.decode(sequence.output_token_ids) if tokenizer else None,
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
