"""The arms of the study at each size of their KV cache, and the tables of what their prefix caches found."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

import pandas as pd

from experiments.prefix_caching.offline import hit_ratio
from framework.checks import whole
from framework.config import describe, suggest, with_keywords
from framework.core import Request
from framework.lora.service import service_of
from framework.report.tables import shown_rates
from framework.study.arms import Arm

Reported = dict[str, dict[int, float]]  # arm → tokens of the cache → share


@dataclass(frozen=True)
class SizedArm:
    """An arm with a KV cache of `num_tokens`; `eviction` is the order of its prefix cache, None without one."""

    arm: Arm
    of: str  # its name without the size
    num_tokens: int

    @property
    def eviction(self) -> str | None:
        return describe(self.arm.scheduler).get("prefix_cache")

    @property
    def block_size(self) -> int:
        return int(describe(self.arm.engine)["block_size"])

    def hit_ratio(self, requests: list[Request], *, is_infinite: bool = False) -> float:
        """Of these requests, one at a time; NaN without a prefix cache."""
        if self.eviction is None:
            return float("nan")
        options: dict[str, Any] = {"eviction": self.eviction}
        options["has_adapters"] = service_of(self.arm.lora).strategy is not None
        return hit_ratio(requests, self.block_size, None if is_infinite else self.num_tokens, **options)


def over_cache_sizes(arms: Mapping[str, Arm], cache_sizes: list[int]) -> dict[str, SizedArm]:
    """Every arm that has a prefix cache at every size (tokens), and the others at the largest: by name.

    Raises ValueError for no size, and for one that is not a whole number of an arm's blocks.
    """
    if not cache_sizes:
        raise ValueError("cache_sizes is empty: name at least one size of the KV cache, in tokens")
    sized = {}
    for name, arm in arms.items():
        has_cache = describe(arm.scheduler).get("prefix_cache") is not None
        for num_tokens in cache_sizes if has_cache else [max(cache_sizes)]:
            one = SizedArm(arm, name, whole("cache_sizes", num_tokens))
            if num_tokens % one.block_size:
                raise ValueError(
                    f"cache_sizes={num_tokens} is no multiple of arms.{name}.engine.block_size={one.block_size}"
                )
            engine = with_keywords(arm.engine, num_blocks=num_tokens // one.block_size)
            sized[f"{name}-{num_tokens}" if has_cache else name] = replace(one, arm=replace(arm, engine=engine))
    return sized


def reported_by_size(
    reported: dict[str, list[float]], cache_sizes: list[int], sized: Mapping[str, SizedArm]
) -> Reported:
    """The reported shares of each arm by size; ValueError for those of no arm, or not one from 0 to 1 per size."""
    names = {one.of for one in sized.values() if one.eviction is not None}
    for name, shares in reported.items():
        if name not in names:
            raise ValueError(f"reported_hits has {name!r}, which is no arm with a prefix cache{suggest(name, names)}")
        if len(shares) != len(cache_sizes) or not all(0 <= share <= 1 for share in shares):
            raise ValueError(
                f"reported_hits.{name}={shares}: give a share from 0 to 1 for each of cache_sizes={cache_sizes}"
            )
    return {name: dict(zip(cache_sizes, shares, strict=True)) for name, shares in reported.items()}


def one_at_a_time(sized: Mapping[str, SizedArm], requests: list[Request], reported: Reported) -> pd.DataFrame:
    """Found prompt tokens / all of them, a row per arm and size and one of an infinite cache; no replay."""
    rows = []
    for one in [one for one in sized.values() if one.eviction is not None]:
        shares = reported.get(one.of, {})
        row = {"arm": one.of, "cache (tokens)": float(one.num_tokens), "blocks": one.num_tokens // one.block_size}
        rows.append(row | {"found": one.hit_ratio(requests), "reported": shares.get(one.num_tokens, float("nan"))})
    for one in {one.of: one for one in sized.values() if one.eviction is not None}.values():
        found = one.hit_ratio(requests, is_infinite=True)
        rows.append({"arm": one.of, "cache (tokens)": "infinite", "blocks": "infinite", "found": found})
    table = pd.DataFrame(rows)
    return table if reported else table.drop(columns="reported")


def hits_table(hits: pd.DataFrame, reported: Reported) -> pd.DataFrame:
    """What `find_hits` makes, as the page shows it."""
    table = pd.DataFrame(
        {
            "arm": hits["of"],
            "cache (tokens)": hits["num_tokens"],
            "rate (req/s)": shown_rates(hits["offered_rate"]),
            "found": hits["prefix_hits"],
            "one at a time": hits["one_at_a_time"],
            "infinite": hits["infinite"],
            "reported": [
                reported.get(of, {}).get(num, float("nan"))
                for of, num in zip(hits["of"], hits["num_tokens"], strict=True)
            ],
            "TTFT P50 (ms)": 1e3 * hits["ttft_p50"],
            "TTFT P99 (ms)": 1e3 * hits["ttft_p99"],
        }
    )
    return table if reported else table.drop(columns="reported")


def describe_hits(hits: pd.DataFrame) -> list[str]:
    """Per arm with a prefix cache: what the largest size found of what there is, at the highest rate."""
    lines = []
    for of, rows in hits[hits["rate"] == hits["rate"].max()].groupby("of", sort=False):
        last = rows.loc[rows["num_tokens"].idxmax()]
        if not isnan(last["infinite"]):
            lines.append(
                f"{of}: with {last['num_tokens']:,} tokens of KV cache {last['prefix_hits']:.1%} of the prompt tokens "
                f"were found; an infinite one, asked one request at a time, has {last['infinite']:.1%}"
            )
    return lines
