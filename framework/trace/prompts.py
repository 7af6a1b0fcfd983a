"""Requests from the token ids of prompts, all of them at 0 s."""

from framework.core import Request


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
