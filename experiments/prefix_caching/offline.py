"""What a prefix cache finds if requests come one at a time, without a clock: a bound, and what papers count."""

from framework.core import Batch, Request, Sequence
from framework.scheduler.prefix_cache import Eviction, PrefixCache


def found_one_at_a_time(
    requests: list[Request],
    block_size: int,
    num_tokens: int | None,
    eviction: Eviction = "lru",
    *,
    has_adapters: bool = False,
) -> list[int]:
    """Prompt tokens of each request that a cache of `num_tokens` (None: infinite) finds, in the order of the trace.

    A request is over before the next one comes: what the cache holds is all there is, and a request that is longer
    than the cache is left out, with nothing found. Answers take room, and only the next turn of a closed session finds
    one: what a model would answer is not known.
    """
    if num_tokens is None:
        num_tokens = sum(request.num_prompt_tokens + request.num_output_tokens + block_size for request in requests)
    cache = PrefixCache(max(num_tokens // block_size, 1), block_size, eviction, has_adapters=has_adapters)
    last_turns: dict[str | None, Sequence] = {}
    num_found = []
    for request in requests:
        sequence = Sequence(request, previous=None if request.think_time is None else last_turns[request.session_id])
        last_turns[request.session_id] = sequence
        num_found.append(pass_through(cache, sequence))
    return num_found


def pass_through(cache: PrefixCache, sequence: Sequence) -> int:
    """Compute the sequence to its end, with an answer that no other has; what was found of its prompt."""
    request = sequence.request
    answer = [-1 - request.request_id] * request.num_output_tokens
    num_slots = request.num_prompt_tokens + request.num_output_tokens - 1
    num_found = 0
    if cache.num_blocks_for(num_slots) <= cache.num_blocks:
        cache.admit(sequence)
        num_found = sequence.num_computed_tokens
        sequence.output_token_ids = answer
        cache.grow(sequence, num_slots)
        cache.keep(Batch([sequence], [num_found], [num_slots - num_found], num_slots - num_found, 0))
        cache.release(sequence)
        cache.forget(sequence)
    sequence.output_token_ids = answer
    return num_found


def hit_ratio(
    requests: list[Request],
    block_size: int,
    num_tokens: int | None,
    eviction: Eviction = "lru",
    *,
    has_adapters: bool = False,
) -> float:
    """Found prompt tokens / all prompt tokens, as in `found_one_at_a_time`.

    NaN of a cache that is not infinite where a session is closed: when its turns come follows from a replay alone.
    """
    if num_tokens is not None and any(request.think_time is not None for request in requests):
        return float("nan")
    num_found = found_one_at_a_time(requests, block_size, num_tokens, eviction, has_adapters=has_adapters)
    num_prompt_tokens = sum(request.num_prompt_tokens for request in requests)
    return sum(num_found) / num_prompt_tokens if num_prompt_tokens else float("nan")
