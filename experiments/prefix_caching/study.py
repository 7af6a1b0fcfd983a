"""Prefix caches by size and order of eviction: prompt tokens that are found, and the time to the first token."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
from typing_extensions import Unpack

from experiments.prefix_caching.figures import over_sizes
from experiments.prefix_caching.sizes import (
    Reported,
    SizedArm,
    describe_hits,
    hits_table,
    one_at_a_time,
    over_cache_sizes,
    reported_by_size,
)
from framework.measure.rates import aggregate
from framework.replay import Clock
from framework.report.finish import Findings, finish, finish_sweep
from framework.report.plots import Drawn
from framework.report.sweep_plots import cache_figure
from framework.report.tables import load_titles
from framework.study.arguments import Sweep
from framework.study.arms import parts_of, resolve_arms
from framework.study.place import open_place
from framework.study.points import load_record, point_of
from framework.study.sweep import Study, run_study

OVER_SIZES = (
    "Over the size of the KV cache, a curve per order of eviction, at {}. Left: prompt tokens that were found; "
    "dotted: by the same cache one request at a time; dashed: by an infinite one. Right: time to the first "
    "token, P50 and (dashed) P99; grey: without a prefix cache, at the largest size."
)
OVER_CACHE = "What prefix caches find over the size of the KV cache"
DEFINITIONS = {
    "Found": "prompt tokens in the prefix cache when their request was first admitted / prompt tokens of all requests "
    "that were served; whole blocks only, and never a prompt's last token",
    "One at a time": "the same if each request of the trace were over before the next one comes: no steps, no clock, "
    "nothing in use. Answers take room, and only the next turn of a closed session finds one. Of closed sessions there "
    "is no such order. A request longer than the cache finds nothing",
    "Infinite": "one at a time in a cache that never evicts: what the trace has to offer. A replay is below it where "
    "equal prompts are computed at the same time, above it where a prompt repeats an answer as text",
    "Reported": "by the source's own counting of blocks of 512 tokens, on its own trace",
}


def run(
    *,
    cache_sizes: list[int],
    reported_hits: dict[str, list[float]] | None,
    source: str,
    clock: Clock,
    **sweep: Unpack[Sweep],
) -> None:
    """Replay every arm with a prefix cache at every size (tokens) of its KV cache, and the others at the largest.

    With `rates=[]` no engine is built: the trace of the first seed passes through each cache one request at a time.
    `source` reports `reported_hits`: of an arm, a share for each size.
    """
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"clock": clock})
    sized = over_cache_sizes(arms, cache_sizes)
    reported = reported_by_size(reported_hits or {}, cache_sizes, sized)
    notes = [f"reported: {source}"] if reported_hits else []
    if not sweep["rates"] and sweep.get("users") is None:
        place = open_place(sweep["device"], sweep["output_dir"])
        trace = sweep["trace"](rate=None, seed=sweep["seeds"][0])
        table = one_at_a_time(sized, trace.requests, reported)
        caption = "Prompt tokens found, one request at a time"
        finish(
            place, "prefix_caching", Findings({}, {caption: table}, notes, DEFINITIONS, {"one_at_a_time.csv": table})
        )
        return
    study = run_study({name: sized_arm.arm for name, sized_arm in sized.items()}, sweep)
    finish_sweep(study, "prefix_caching", partial(find, study, sized, reported, notes))
    study.raise_failures()


def find(
    study: Study, sized: Mapping[str, SizedArm], reported: Reported, notes: list[str], points: pd.DataFrame
) -> Findings:
    hits = find_hits(study, sized, points)
    highest = points["rate"].max()
    title = load_titles(points[points["rate"] == highest])[0]
    figures: dict[str, Drawn] = {"over_sizes": (over_sizes(hits[hits["rate"] == highest]), OVER_SIZES.format(title))}
    figures |= cache_figure(study, points[points["arm"].isin(at_largest(sized))], highest)
    tables = {OVER_CACHE: hits_table(hits, reported)}
    return Findings(figures, tables, [*describe_hits(hits), *notes], DEFINITIONS, {"hits.csv": hits})


def at_largest(sized: Mapping[str, SizedArm]) -> list[str]:
    """The names of the arms with the largest cache."""
    largest = max(sized_arm.num_tokens for sized_arm in sized.values())
    return [name for name, sized_arm in sized.items() if sized_arm.num_tokens == largest]


def find_hits(study: Study, sized: Mapping[str, SizedArm], points: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, size and rate: what was found, and what would be one at a time, of the requests it served.

    Means over seeds, with the intervals of `aggregate`.
    """
    rows = []
    for _, row in aggregate(points).iterrows():
        sized_arm = sized[row["arm"]]
        same = points[(points["arm"] == row["arm"]) & (points["rate"] == row["rate"])]
        offline = [served_one_at_a_time(study, sized_arm, point) for _, point in same.iterrows()]
        shares = pd.DataFrame(offline, columns=["one_at_a_time", "infinite"]).mean()
        rows.append({"base_arm": sized_arm.base_arm, "num_tokens": sized_arm.num_tokens, **shares, **row})
    return pd.DataFrame(rows)


def served_one_at_a_time(study: Study, sized_arm: SizedArm, row: "pd.Series[Any]") -> tuple[float, float]:
    """Of the requests that the point's arm did not refuse: in its cache, and in an infinite one."""
    folder = study.folder(row["point"])
    table = pd.read_parquet(folder / "requests.parquet", columns=["request_id", "refused"])
    served = set(table.loc[table["refused"].isna(), "request_id"])
    record = load_record(folder)
    assert record is not None
    point = point_of(record)
    trace = sized_arm.arm.trace(seed=point.seed, **point.load.trace_keywords)
    requests = [request for request in trace.requests if request.request_id in served]
    return sized_arm.hit_ratio(requests), sized_arm.hit_ratio(requests, is_infinite=True)
