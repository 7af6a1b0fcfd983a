"""A prefix cache after the fact: fed with a log, it says token by token what must have been found.

It looks at all blocks to evict one and knows contents by the tokens themselves, so it has no heap and no chain.
"""

from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

from framework.core import Sequence
from framework.engine.torch_engine.prompt_tokens import prompt_of
from framework.scheduler.prefix_cache import PrefixCache

VOCAB_SIZE = 1 << 30  # two tokens drawn at random are never equal


def tokens_of(sequence: Sequence) -> np.ndarray:
    """All that are known, as an engine draws the prompt's."""
    previous = sequence.previous
    if previous is not None and previous.prompt_token_ids is None:
        previous.prompt_token_ids = tokens_of(previous)[: previous.request.num_prompt_tokens]
    prompt = prompt_of(sequence, VOCAB_SIZE, seed=0)
    return np.concatenate((prompt, np.array(sequence.output_token_ids, dtype=np.int32)))


class LoggedCache(PrefixCache):
    """Keeps what happens to it, and what it found: `log` and `num_found`, tokens of each admission."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.log, self.num_found = [], []
        self.is_admitting = False

    def admit(self, sequence):
        self.log.append(("admit", sequence, sequence.num_tokens))
        self.is_admitting = True
        super().admit(sequence)
        self.is_admitting = False
        self.num_found.append(sequence.num_computed_tokens)

    def take(self):
        if not self.is_admitting:
            self.log.append(("take", None, 0))
        return super().take()

    def keep(self, batch):
        for sequence, start, num_tokens in zip(batch.sequences, batch.starts, batch.num_tokens, strict=True):
            if sequence.block_table:
                self.log.append(("keep", sequence, (start, start + num_tokens)))
        super().keep(batch)

    def release(self, sequence):
        self.log.append(("release", sequence, len(sequence.block_table)))
        super().release(sequence)


@dataclass
class Block:
    depth: int
    kept: int
    given_back: int = 0
    num_users: int = 1
    num_uses: int = 1


@dataclass
class OfflineCache:
    """`run` says how many tokens each admission of the log finds."""

    num_blank: int
    block_size: int
    eviction: str
    has_adapters: bool
    blocks: dict[bytes, Block] = field(default_factory=dict)
    tables: dict[Sequence, list[bytes | None]] = field(default_factory=dict)
    now: int = 0

    def run(self, log) -> list[int]:
        num_found = []
        for self.now, (event, sequence, num) in enumerate(log):
            if event == "admit":
                num_found.append(self.admit(sequence, num))
            elif event == "take":
                self.take()
            elif event == "keep":
                self.keep(sequence, num)
            else:
                self.release(sequence, num)
        return num_found

    def key(self, sequence, num_tokens) -> bytes:
        adapter = str(sequence.request.adapter_id) if self.has_adapters else ""
        return sha256(adapter.encode() + tokens_of(sequence)[:num_tokens].tobytes()).digest()

    def admit(self, sequence, num_tokens) -> int:
        table = self.tables[sequence] = []
        for end in range(self.block_size, num_tokens, self.block_size):
            block = self.blocks.get(key := self.key(sequence, end))
            if block is None:
                break
            block.num_users += 1
            block.num_uses += 1
            table.append(key)
        num_found = len(table) * self.block_size
        for _ in range(num_found, num_tokens, self.block_size):
            self.take()
            table.append(None)
        return num_found

    def take(self) -> None:
        if self.num_blank:
            self.num_blank -= 1
        else:
            unused = [key for key, block in self.blocks.items() if not block.num_users]
            del self.blocks[min(unused, key=self.order)]

    def order(self, key):
        block = self.blocks[key]
        by = {"lru": (block.given_back,), "lfu": (block.num_uses, block.given_back), "fifo": (block.kept,)}
        return *by[self.eviction], -block.depth

    def keep(self, sequence, computed) -> None:
        table = self.tables[sequence]
        first, end = (num // self.block_size for num in computed)
        table += [None] * (end - len(table))
        for depth in range(first, end):
            key = self.key(sequence, (depth + 1) * self.block_size)
            assert table[depth] is None
            if key not in self.blocks:
                self.blocks[key] = Block(depth, self.now)
                table[depth] = key

    def release(self, sequence, num_blocks) -> None:
        table = self.tables.pop(sequence)
        for key in [*table, *[None] * (num_blocks - len(table))]:
            if key is None:
                self.num_blank += 1
            else:
                self.blocks[key].num_users -= 1
                self.blocks[key].given_back = self.now
