"""What a continuous batching step is made of, and how many new tokens it has at most."""

import sys
from typing import Literal, get_args

Steps = Literal["prompts_first", "mixed", "alternate"]


def token_budget(max_num_batched_tokens: int | None, max_model_len: int | None, steps: Steps, max_num_seqs: int) -> int:
    """New tokens of a step at most; ValueError for none, or where seats that decode in the budget are more."""
    if steps not in get_args(Steps):
        raise ValueError(f"scheduler.steps={steps!r} is not one of {', '.join(get_args(Steps))}")
    source, budget = "", max_num_batched_tokens
    if budget is None:
        source, budget = " (null: the model's context)", sys.maxsize if max_model_len is None else max_model_len
    if budget < 1:
        raise ValueError(f"scheduler.max_num_batched_tokens must be at least 1, not {budget}")
    if steps != "prompts_first" and budget < max_num_seqs:
        raise ValueError(
            f"scheduler.max_num_batched_tokens={budget}{source} is less than one decode token for each of "
            f"scheduler.max_num_seqs={max_num_seqs} seats; raise it, lower max_num_seqs, or take steps=prompts_first"
        )
    return budget
