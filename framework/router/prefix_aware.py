"""Prefix-aware: where the prompt's beginning was sent before, unless that server has too much to do.

The router keeps a record of what it sent to each server, as SGLang's and vLLM's do: what a server really keeps it does
not see. Keywords and defaults are those of their `cache_aware` policy.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence as ListOf

from framework.checks import not_negative, whole
from framework.contracts import Router, Server
from framework.core import Sequence
from framework.prefixes import BlockKeys
from framework.router.load import least_loaded

Record = OrderedDict[int, None]  # keys of blocks, the one to forget first in front; a block's parent is never before it


def prefix_aware(
    servers: ListOf[Server],
    *,
    min_match: float = 0.3,
    max_excess: int = 64,
    max_ratio: float = 1.5,
    block_size: int = 16,
    max_blocks: int = 65536,
) -> Router:
    """The server with the longest beginning of the prompt, if that is more than `min_match` of it.

    Else the one with the shortest record, which has at most `max_blocks` blocks of `block_size` tokens. If a server has
    over `max_excess` unfinished requests more than another, and over `max_ratio` times as many, the least loaded one.
    """
    for name, value in {"min_match": min_match, "max_ratio": max_ratio}.items():
        not_negative(f"router.{name}", value)
    whole("router.max_excess", max_excess, at_least=0)
    whole("router.block_size", block_size)
    whole("router.max_blocks", max_blocks)
    choose = least_loaded(servers)
    block_keys = BlockKeys(block_size, has_adapters=True)
    records: dict[int, Record] = {server.index: OrderedDict() for server in servers}

    def named(keys: list[int]) -> Server:
        loads = [server.state.num_unfinished for server in servers]
        if max(loads) > min(loads) + max_excess and max(loads) > min(loads) * max_ratio:
            return choose(servers)
        matches = {index: num_known(record, keys) for index, record in records.items()}
        longest = max(matches.values())
        if longest > min_match * len(keys):
            return choose([server for server in servers if matches[server.index] == longest])
        shortest = min(map(len, records.values()))
        return choose([server for server in servers if len(records[server.index]) == shortest])

    def route(sequence: Sequence) -> Server:
        num_blocks = sequence.request.num_prompt_tokens // block_size
        keys = block_keys.of(sequence, num_blocks)[:num_blocks]
        block_keys.forget(sequence)
        server = named(keys)
        note(records[server.index], keys, max_blocks)
        return server

    return route


def num_known(record: Record, keys: list[int]) -> int:
    """How many of the leading keys are in the record: none is behind one that is not."""
    if not keys or keys[0] not in record:
        return 0
    return bisect_left(range(len(keys)), x=True, key=lambda index: keys[index] not in record)


def note(record: Record, keys: list[int], max_blocks: int) -> None:
    for key in reversed(keys):
        record[key] = None
        record.move_to_end(key)
    while len(record) > max_blocks:
        record.popitem(last=False)
