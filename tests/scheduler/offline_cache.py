"""A prefix cache after the fact: fed with a log, it says token by token what must have been found.

It looks at all blocks to evict one and knows contents by the tokens themselves, so it has no heap, no run and no chain.
"""

from dataclasses import dataclass
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


@dataclass(slots=True)
class Block:
    depth: int
    kept: int
    place: int
    num_users: int = 1
    num_uses: int = 1


UNAVAILABLE = np.iinfo(np.int64).max


class OfflineCache:
    """`run` says how many tokens each admission of the log finds."""

    def __init__(self, num_blocks: int, block_size: int, eviction: str, has_adapters: bool) -> None:
        self.num_blank, self.block_size, self.eviction, self.has_adapters = (
            num_blocks,
            block_size,
            eviction,
            has_adapters,
        )
        self.blocks: dict[bytes, Block] = {}
        self.tables: dict[Sequence, list[bytes | None]] = {}
        self.keys: dict[Sequence, list[bytes]] = {}
        self.order = np.full(num_blocks, UNAVAILABLE)  # by place, of blocks without users: the least goes first
        self.key_at: list[bytes | None] = [None] * num_blocks
        self.places = list(range(num_blocks))
        self.now = 0

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

    def key(self, sequence, depth) -> bytes:
        """The hash of all tokens up to the end of a block."""
        keys = self.keys.get(sequence, [])
        if depth >= len(keys):  # anew: there may be more tokens than before
            content = sha256(str(sequence.request.adapter_id).encode() if self.has_adapters else b"")
            tokens, keys = tokens_of(sequence), []
            for end in range(self.block_size, len(tokens) + 1, self.block_size):
                content.update(tokens[end - self.block_size : end].tobytes())
                keys.append(content.digest())
            self.keys[sequence] = keys
        return keys[depth]

    def admit(self, sequence, num_tokens) -> int:
        table = self.tables[sequence] = []
        for depth in range((num_tokens - 1) // self.block_size):
            block = self.blocks.get(key := self.key(sequence, depth))
            if block is None:
                break
            block.num_users += 1
            block.num_uses += 1
            self.order[block.place] = UNAVAILABLE
            table.append(key)
        num_found = len(table) * self.block_size
        for _ in range(num_found, num_tokens, self.block_size):
            self.take()
            table.append(None)
        return num_found

    def take(self) -> None:
        if self.num_blank:
            self.num_blank -= 1
            return
        place = int(self.order.argmin())
        assert self.order[place] < UNAVAILABLE
        self.order[place] = UNAVAILABLE
        del self.blocks[self.key_at[place]]
        self.places.append(place)

    def order_of(self, block: Block) -> int:
        assert max(block.depth, block.num_uses) < 1 << 16
        assert self.now < 1 << 24
        by = {"lru": (0, self.now), "lfu": (block.num_uses, self.now), "fifo": (0, block.kept)}
        uses, time = by[self.eviction]
        return (uses << 40) + (time << 16) - block.depth

    def keep(self, sequence, computed) -> None:
        table = self.tables[sequence]
        first, end = (num // self.block_size for num in computed)
        table += [None] * (end - len(table))
        for depth in range(first, end):
            key = self.key(sequence, depth)
            assert table[depth] is None
            if key not in self.blocks:
                self.blocks[key] = Block(depth, self.now, self.places.pop())
                self.key_at[self.blocks[key].place] = key
                table[depth] = key

    def release(self, sequence, num_blocks) -> None:
        table = self.tables.pop(sequence)
        for key in [*table, *[None] * (num_blocks - len(table))]:
            if key is None:
                self.num_blank += 1
                continue
            block = self.blocks[key]
            block.num_users -= 1
            if not block.num_users:
                self.order[block.place] = self.order_of(block)
        if sequence.is_finished:
            self.keys.pop(sequence, None)
