"""What a step's cost depends on: a few physical terms, known from its batch alone or from a row of a step log."""

from typing import NamedTuple

import pandas as pd

from framework.core import Batch
from framework.cost.load import loads_in

KINDS = ("decode", "prompt")  # steps of decodes alone, and steps with rows of prompts: engines compute them differently


class Features(NamedTuple):
    """Of one step; its kind is `prompt` where it has rows of prompts, else `decode`."""

    num_rows: int  # new tokens: each goes through every layer
    num_seqs: int
    num_context_tokens: int  # keys and values that the rows read
    max_context_tokens: float  # of the longest sequence: few programs read these one after the other
    num_pairs: int  # of a query and a key, of the prompts' rows
    num_keys: float  # that a row of a prompt sees, in the mean: chunks behind many are read one key after the other
    num_adapters: int  # that its sequences use
    num_adapter_loads: int  # that it waits for
    num_copied_blocks: int  # KV blocks to the host and back
    is_first: int  # 1: no step was in flight when it was launched, so that none hid the host's work
    loaded_rows: float = 0.0  # its rows times the rows of prompts per second just before it, see `load`


TERMS = {  # of each kind, what the seconds on the device are linear in, beside tables of the rows
    "decode": ("num_adapters",),
    "prompt": ("num_seqs", "num_pairs", "num_keys", "num_adapters", "is_first", "loaded_rows"),
}
# Of the host's work, each with a constant: what the step before hides, and what nothing does
HOST_TERMS = ("num_rows", "num_seqs", "num_adapters", "num_adapter_loads", "num_copied_blocks")
BESIDE_TERMS = (*HOST_TERMS, "is_first")


def kind_of(batch: Batch) -> str:
    return "prompt" if batch.num_prefill_tokens else "decode"


def features_of(batch: Batch, is_first: bool, has_adapters: bool, num_adapter_loads: int) -> Features:
    """Of a step that waits for `num_adapter_loads` of the batch's loads."""
    num_pairs = batch.num_prefill_pairs if batch.num_prefill_tokens else 0
    return Features(
        batch.num_prefill_tokens + batch.num_decode_tokens,
        len(batch.sequences),
        batch.num_context_tokens,
        batch.max_context_tokens,
        num_pairs,
        num_pairs / max(batch.num_prefill_tokens, 1),
        batch.num_adapters if has_adapters else 0,
        num_adapter_loads,
        len(batch.swap_out) + len(batch.swap_in),
        int(is_first),
    )


def awaited_slots(batch: Batch, are_loads_beside: bool) -> set[int]:
    """Slots whose loads the step waits for: all, or those that its sequences use where others come beside it."""
    if not batch.adapter_loads or not are_loads_beside:
        return set(batch.adapter_loads)
    return batch.adapter_loads.keys() & {sequence.adapter_slot for sequence in batch.sequences}


def features_in(log: pd.DataFrame) -> pd.DataFrame:
    """`kind` and the fields of Features, of every row of a step log (see `step_log`)."""
    num_rows = log["num_prefill_tokens"] + log["num_decode_tokens"]
    return pd.DataFrame(
        {
            "kind": [KINDS[num > 0] for num in log["num_prefill_tokens"]],
            "num_rows": num_rows,
            "num_seqs": log["num_seqs"],
            "num_context_tokens": log["num_context_tokens"],
            "max_context_tokens": log["max_context_tokens"],
            "num_pairs": log["num_prefill_pairs"],
            "num_keys": log["num_prefill_pairs"] / log["num_prefill_tokens"].clip(lower=1),
            "num_adapters": log["num_adapters"],
            "num_adapter_loads": log["num_adapter_loads"],
            "num_copied_blocks": log["num_copied_blocks"],
            "is_first": log["is_first"],
            "loaded_rows": loads_in(log) * num_rows,
        }
    )
