"""Share of prompts' blocks found in a cache, by its size and order of eviction: Table 1 of Mooncake (FAST 2025)."""

from collections import OrderedDict
from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import count
from typing import Literal

import pandas as pd

from experiments.lora.figures import lines_by_arm
from experiments.papers.comparison import read_paper, reported, with_comparison
from experiments.prefix_caching.offline import hit_ratio
from framework.build import MakeTrace
from framework.core import Request
from framework.report.finish import Findings, finish
from framework.study.place import open_place

PAPER = "mooncake_cache"
Order = Literal["lru", "lfu"]
INFINITE = "infinite"
FOUND = "Share found, by the number of blocks in the cache"
OVER_SIZE = "Share of the prompts' blocks that are found, over the number of blocks in the cache. Dotted: reported."
DEFINITIONS = {
    "Blocks found": "blocks of prompts that are in the cache when their request comes / blocks of all prompts, each "
    "block counted alone, wherever it stands. Requests come one at a time in the trace's order; answers are not kept. "
    "lru evicts the block used the longest ago, lfu the one used least often since it came, of equals the longest ago",
    "Tokens found": "what prefix_caching counts: tokens of the longest run of known blocks from a prompt's start, "
    "never its last token, / tokens of all prompts. Answers take room",
}


def run(*, trace: MakeTrace, orders: list[Order], num_blocks: list[int], device: str, output_dir: str) -> None:
    """Pass the trace's prompts through a cache of each size and order, and through an infinite one. No engine.

    ValueError for a trace that names no blocks.
    """
    place = open_place(device, output_dir)
    requests = trace(rate=None, seed=0).requests
    if not any(request.prefix_ids for request in requests):
        raise ValueError("the trace names no blocks: it needs hash_ids, as trace=sample_mooncake has them")
    rows = found(requests, orders, num_blocks)
    paper = read_paper(PAPER)
    beside = [
        {"arm": f"{order} (reported)", "x": int(size), "metric": "blocks", "value": value, "is_reported": True}
        for order in orders
        for size, value in reported(paper, order).items()
        if size != INFINITE
    ]
    own = rows[rows["num_blocks"] != INFINITE].rename(columns={"order": "arm", "num_blocks": "x", "blocks": "value"})
    lines = pd.concat([own.assign(metric="blocks", is_reported=False), pd.DataFrame(beside)], ignore_index=True)
    figure = lines_by_arm(lines.astype({"x": float}), "blocks in the cache", {"blocks": "share found"}, "")
    measured = {
        order: {str(size): value for size, value in zip(part["num_blocks"], part["blocks"], strict=True)}
        for order, part in rows.groupby("order", sort=False)
    }
    num_all = sum(len(request.prefix_ids) for request in requests)
    notes = [f"the trace has {len(requests):,} requests with {num_all:,} blocks"]
    names = {"num_blocks": "cache (blocks)", "blocks": "blocks found", "tokens": "tokens found"}
    tables = {FOUND: rows.rename(columns=names)}
    findings = Findings({"hits": (figure, OVER_SIZE)}, tables, notes, DEFINITIONS, {"hits.csv": rows})
    finish(place, PAPER, with_comparison(PAPER, measured, findings))


def found(requests: list[Request], orders: list[Order], num_blocks: list[int]) -> pd.DataFrame:
    """A row per order and size, and one of an infinite cache: the share of blocks, and that of tokens."""
    block_size = requests[0].prefix_block_size
    rows = []
    for order in orders:
        for size in [*num_blocks, None]:
            shares = {
                "blocks": blocks_found(requests, size, order),
                "tokens": hit_ratio(requests, block_size, None if size is None else size * block_size, order),
            }
            rows.append({"order": order, "num_blocks": INFINITE if size is None else size} | shares)
    return pd.DataFrame(rows)


def blocks_found(requests: Iterable[Request], num_blocks: int | None, order: Order) -> float:
    """The share of the prompts' blocks that a cache of `num_blocks` (None: infinite) has when they are asked for."""
    seen = lru if order == "lru" else lfu
    blocks = [block for request in requests for block in request.prefix_ids]
    return seen(blocks, len(blocks) if num_blocks is None else num_blocks) / len(blocks)


def lru(blocks: list[int], capacity: int) -> int:
    """How many of the blocks are there when they come."""
    cache: OrderedDict[int, None] = OrderedDict()
    num_found = 0
    for block in blocks:
        if block in cache:
            num_found += 1
            cache.move_to_end(block)
            continue
        if len(cache) >= capacity:
            cache.popitem(last=False)
        cache[block] = None
    return num_found


def lfu(blocks: list[int], capacity: int) -> int:
    """The same; a block's place in the heap is outdated once it is used again, and is passed over."""
    places: dict[int, tuple[int, int]] = {}  # block → uses, time of the last
    heap: list[tuple[int, int, int]] = []
    clock = count()
    num_found = 0
    for block in blocks:
        uses, _ = places.get(block, (0, 0))
        num_found += uses > 0
        while not uses and len(places) >= capacity:
            *place, oldest = heappop(heap)
            if places.get(oldest) == tuple(place):
                del places[oldest]
        places[block] = (uses + 1, next(clock))
        heappush(heap, (*places[block], block))
    return num_found
