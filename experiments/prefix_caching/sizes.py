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
    base_arm: str  # its name without the size
    num_tokens: int

    @property
    def eviction(self) -> str | None:
        return describe(self.arm.scheduler).get("prefix_cache")

    @property
    def block_size(self) -> int:
        block_size = describe(self.arm.engine)["block_size"]
        if block_size is None:  # of a modelled engine
            raise ValueError("engine.block_size=null leaves it to a cost model; cache_sizes need a number, as 16")
        return whole("engine.block_size", block_size)

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
            sized_arm = SizedArm(arm, name, whole("cache_sizes", num_tokens))
            block_size = sized_arm.block_size
            if num_tokens % block_size:
                raise ValueError(
                    f"cache_sizes={num_tokens} is no multiple of arms.{name}.engine.block_size={block_size}"
                )
            engine = with_keywords(arm.engine, num_blocks=num_tokens // block_size)
            sized[f"{name}-{num_tokens}" if has_cache else name] = replace(sized_arm, arm=replace(arm, engine=engine))
    return sized


def reported_by_size(
    reported: dict[str, list[float]], cache_sizes: list[int], sized: Mapping[str, SizedArm]
) -> Reported:
    """The reported shares of each arm by size; ValueError for those of no arm, or not one from 0 to 1 per size."""
    names = {sized_arm.base_arm for sized_arm in with_cache(sized)}
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
    for sized_arm in with_cache(sized):
        name, num_tokens = sized_arm.base_arm, sized_arm.num_tokens
        row = {"arm": name, "cache (tokens)": float(num_tokens), "blocks": num_tokens // sized_arm.block_size}
        share = reported.get(name, {}).get(num_tokens, float("nan"))
        rows.append(row | {"found": sized_arm.hit_ratio(requests), "reported": share})
    for name, sized_arm in {sized_arm.base_arm: sized_arm for sized_arm in with_cache(sized)}.items():
        found = sized_arm.hit_ratio(requests, is_infinite=True)
        rows.append({"arm": name, "cache (tokens)": "infinite", "blocks": "infinite", "found": found})
    table = pd.DataFrame(rows)
    return table if reported else table.drop(columns="reported")


def with_cache(sized: Mapping[str, SizedArm]) -> list[SizedArm]:
    """Those that have a prefix cache."""
    return [sized_arm for sized_arm in sized.values() if sized_arm.eviction is not None]


def hits_table(hits: pd.DataFrame, reported: Reported) -> pd.DataFrame:
    """What `find_hits` makes, as the page shows it."""
    table = pd.DataFrame(
        {
            "arm": hits["base_arm"],
            "cache (tokens)": hits["num_tokens"],
            "rate (req/s)": shown_rates(hits["offered_rate"]),
            "found": hits["prefix_hits"],
            "one at a time": hits["one_at_a_time"],
            "infinite": hits["infinite"],
            "reported": [
                reported.get(name, {}).get(num_tokens, float("nan"))
                for name, num_tokens in zip(hits["base_arm"], hits["num_tokens"], strict=True)
            ],
            "TTFT P50 (ms)": 1e3 * hits["ttft_p50"],
            "TTFT P99 (ms)": 1e3 * hits["ttft_p99"],
        }
    )
    return table if reported else table.drop(columns="reported")


def describe_hits(hits: pd.DataFrame) -> list[str]:
    """Per arm with a prefix cache: what the largest size found of what there is, at the highest rate."""
    lines = []
    for name, rows in hits[hits["rate"] == hits["rate"].max()].groupby("base_arm", sort=False):
        last = rows.loc[rows["num_tokens"].idxmax()]
        if not isnan(last["infinite"]):
            lines.append(
                f"{name}: with {last['num_tokens']:,} tokens of KV cache {last['prefix_hits']:.1%} of the prompt "
                f"tokens were found; an infinite one, asked one request at a time, has {last['infinite']:.1%}"
            )
    return lines
