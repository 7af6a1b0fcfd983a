"""The tables of generated outputs: what was written, and when each token came."""

from itertools import pairwise

import pandas as pd
from typing_extensions import TypedDict

from experiments.generate.schema import is_stopped
from framework.core import Sequence
from framework.models.tokenizer import Tokenizer


class Generation(TypedDict):
    """What generations.jsonl has of an output."""

    adapter_id: str | None
    prompt_token_ids: list[int]
    output_token_ids: list[int]
    text: str | None
    token_times: list[float]  # s, on the virtual clock


def generation(sequence: Sequence, tokenizer: Tokenizer | None) -> Generation:
    """Its text, which a tokenizer makes, is without the stop token."""
    prompt, output = sequence.request.prompt_token_ids, sequence.output_token_ids
    assert prompt is not None
    return {
        "adapter_id": sequence.request.adapter_id,
        "prompt_token_ids": list(prompt),
        "output_token_ids": output,
        "text": tokenizer.decode(output[:-1] if is_stopped(sequence) else output) if tokenizer else None,
        "token_times": sequence.token_times,
    }


def generations_table(records: list[Generation], tokenizer: Tokenizer | None) -> pd.DataFrame:
    """One row per output, without the times of its tokens."""
    rows = []
    for record in records:
        prompt, times = record["prompt_token_ids"], record["token_times"]
        rows.append(
            {
                "adapter": record["adapter_id"],
                "prompt": repr(tokenizer.decode(prompt) if tokenizer else str(prompt)),
                "output": repr(record["text"] if tokenizer else str(record["output_token_ids"])),
                "TTFT (ms)": 1e3 * times[0],
                "tokens/s": len(times) / times[-1],
            }
        )
    return pd.DataFrame(rows)


def time_table(sequences: list[Sequence]) -> pd.DataFrame:
    """One row per token: `output` (from 0), `adapter`, `token` (from 1) and `elapsed`, the time (s) since the last."""
    rows = [
        {"output": index, "adapter": sequence.request.adapter_id, "token": token, "elapsed": time - before}
        for index, sequence in enumerate(sequences)
        for token, (before, time) in enumerate(pairwise([0.0, *sequence.token_times]), start=1)
    ]
    return pd.DataFrame(rows)
