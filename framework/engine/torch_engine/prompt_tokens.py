"""The prompts of a trace: its own tokens, or seeded random ones that depend on the request, and on what was said."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from framework.core import Request, Sequence

PREFIX_STREAM, REQUEST_STREAM = 0, 1  # keep a prefix id and an equal request id apart


def prompt_token_ids(request: Request, vocab_size: int, seed: int) -> npt.NDArray[np.int32]:
    """The prompt of a request, (num_prompt_tokens,).

    Random prompts begin with `prefix_block_size` tokens per entry of `prefix_ids`, drawn from (seed, prefix id), so
    that equal ids give equal tokens; the rest is drawn from (seed, request id). `check_prompt` says which are refused.
    """
    if request.prompt_token_ids is not None:
        return np.array(request.prompt_token_ids, dtype=np.int32)
    block_size = request.prefix_block_size
    num_own_tokens = max(request.num_prompt_tokens - len(request.prefix_ids) * block_size, 0)
    blocks = [_draw((seed, PREFIX_STREAM, prefix_id), block_size, vocab_size) for prefix_id in request.prefix_ids]
    own = _draw((seed, REQUEST_STREAM, request.request_id), num_own_tokens, vocab_size)
    return np.concatenate((*blocks, own))[: request.num_prompt_tokens]


def prompt_of(sequence: Sequence, vocab_size: int, seed: int) -> npt.NDArray[np.int32]:
    """As `prompt_token_ids`; of a turn the conversation so far, and behind it only the new text is drawn."""
    request, previous = sequence.request, sequence.previous
    if previous is None or request.prompt_token_ids is not None:
        return prompt_token_ids(request, vocab_size, seed)
    assert previous.prompt_token_ids is not None
    num_new_tokens = request.num_prompt_tokens - sequence.num_history_tokens
    new_text = _draw((seed, REQUEST_STREAM, request.request_id), num_new_tokens, vocab_size)
    answer = np.array(previous.output_token_ids, dtype=np.int32)
    return np.concatenate((previous.prompt_token_ids, answer, new_text))


def _draw(key: tuple[int, ...], num_tokens: int, vocab_size: int) -> npt.NDArray[np.int32]:
    return np.random.default_rng(key).integers(vocab_size, size=num_tokens, dtype=np.int32)


def check_requests(requests: Iterable[Request], max_model_len: int, vocab_size: int) -> None:
    """ValueError naming the request that is too long, or has another's id, or that `check_prompt` refuses."""
    request_ids: set[int] = set()
    for request in requests:
        if request.num_prompt_tokens + request.num_output_tokens > max_model_len:
            raise ValueError(
                f"request {request.request_id} has {request.num_prompt_tokens} prompt and "
                f"{request.num_output_tokens} output tokens; together at most {max_model_len} (max_model_len)"
            )
        if request.request_id in request_ids:
            raise ValueError(f"two requests have the id {request.request_id}")
        request_ids.add(request.request_id)
        check_prompt(request, vocab_size)


def check_prompt(request: Request, vocab_size: int) -> None:
    """ValueError naming the request without a prompt, or whose own tokens are outside the vocabulary or too few."""
    if request.num_prompt_tokens < 1:
        raise ValueError(f"request {request.request_id} has {request.num_prompt_tokens} prompt tokens; at least 1")
    if request.prompt_token_ids is None:
        return
    tokens = np.array(request.prompt_token_ids, dtype=np.int64)
    if len(tokens) != request.num_prompt_tokens:
        raise ValueError(
            f"request {request.request_id} says {request.num_prompt_tokens} prompt tokens and brings {len(tokens)}"
        )
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if outside.size:
        raise ValueError(
            f"request {request.request_id} has prompt token {outside[0]}; the model's vocabulary has {vocab_size} "
            "tokens. Was the text encoded by another model's tokenizer?"
        )
