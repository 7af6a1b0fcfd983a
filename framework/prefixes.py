"""What blocks of tokens are known by: the chain of all tokens up to the block's end.

Equal tokens behind equal ones have equal keys, whatever request they are of, and others have different ones.
"""

from hashlib import blake2b
from typing import Any

from framework.core import Request, Sequence

Names = tuple[Any, ...]  # what tokens are known by

KEY_SIZE = 16  # bytes: two different chains are taken for one with a probability of 2^-128


class BlockKeys:
    """Keys of leading full blocks of `block_size` tokens; with `has_adapters`, those of other adapters are others."""

    def __init__(self, block_size: int, *, has_adapters: bool) -> None:
        self.block_size, self.has_adapters = block_size, has_adapters
        self.made: dict[Sequence, list[int]] = {}  # those made so far, of unfinished sequences

    def of(self, sequence: Sequence, num_blocks: int) -> list[int]:
        """Those of its first `num_blocks` blocks, or more; each is made once."""
        keys = self.made.get(sequence)
        if keys is None:
            keys = self.made[sequence] = self._named_keys(sequence)
        while len(keys) < num_blocks:
            start = len(keys) * self.block_size
            parent = keys[-1] if keys else self._root(sequence.request)
            keys.append(key_of(parent, named_tokens(sequence, start, start + self.block_size)))
        return keys

    def _named_keys(self, sequence: Sequence) -> list[int]:
        """Of the leading blocks that the trace's prefix ids name whole: the chain of these ids, plus the block's end.

        Those of a conversation are named in its first turn.
        """
        keys: list[int] = []
        if sequence.request.prompt_token_ids is not None:
            return keys
        chain = self._root(sequence.request)
        while sequence.previous is not None:
            sequence = sequence.previous
        request, size = sequence.request, sequence.request.prefix_block_size
        num_named = min(len(request.prefix_ids) * size, request.num_prompt_tokens)
        for index, prefix_id in enumerate(request.prefix_ids):
            chain = key_of(chain, prefix_id)
            first_end = (index * size // self.block_size + 1) * self.block_size
            keys += map(chain.__add__, range(first_end, min((index + 1) * size, num_named) + 1, self.block_size))
        return keys

    def _root(self, request: Request) -> int:
        """What a chain begins with: the adapter, and how many tokens a name stands for (0: the trace has the text)."""
        adapter_id = request.adapter_id if self.has_adapters else None
        return key_of(0, (adapter_id, request.prefix_block_size if request.prompt_token_ids is None else 0))

    def forget(self, sequence: Sequence) -> None:
        self.made.pop(sequence, None)


def key_of(parent: int, names: object) -> int:
    return int.from_bytes(blake2b(b"%x %r" % (parent, names), digest_size=KEY_SIZE).digest())


def named_tokens(sequence: Sequence, start: int, end: int) -> Names:
    """Names of the tokens at [start, end), equal for equal tokens behind equal ones: (prefix ids, request id, tokens).

    A prompt's tokens are known by their ids where the trace has text; elsewhere by the prefix ids that cover them, and
    those that none covers by the request, as nobody else has them. Output tokens are known by their ids. A conversation
    so far has the names that it had in the turns before.
    """
    if sequence.request.prompt_token_ids is None:
        while sequence.previous is not None and end <= sequence.num_history_tokens:
            sequence = sequence.previous
        if sequence.previous is not None and start < (turn_start := sequence.num_history_tokens):
            return named_tokens(sequence.previous, start, turn_start), named_tokens(sequence, turn_start, end)
    request, size = sequence.request, sequence.request.prefix_block_size
    num_prompt_tokens = request.num_prompt_tokens
    num_named = min(len(request.prefix_ids) * size, num_prompt_tokens)
    first_output, end_output = max(start - num_prompt_tokens, 0), max(end - num_prompt_tokens, 0)
    output = tuple(sequence.output_token_ids[first_output:end_output])
    if request.prompt_token_ids is not None:
        return (), None, request.prompt_token_ids[start:end] + output
    prefix_ids = request.prefix_ids[start // size : -(-min(end, num_named) // size)] if start < num_named else ()
    has_own = max(start, num_named) < min(end, num_prompt_tokens)
    return prefix_ids, request.request_id if has_own else None, output
