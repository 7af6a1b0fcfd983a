"""What a sweep's page says of requests that were not served as the trace has them, and of the memory beside them."""

from collections.abc import Iterable, Iterator
from math import inf
from pathlib import Path

import pandas as pd

from framework.config import describe
from framework.lora.service import service_of
from framework.measure.metrics import MLPERF_REQUESTS, MLPERF_SECONDS
from framework.measure.rates import (
    MIN_REQUESTS,
    highest_within,
    is_saturated,
    over_rates,
    saturation,
)
from framework.measure.slo import describe_limits, goals_of, request_limits, target_of
from framework.report.gpu import gpu_notes
from framework.report.modelled import modelled_notes, recorded_notes
from framework.report.tables import rate_title, short
from framework.study.points import load_record
from framework.study.records import PointRecord
from framework.study.replay_point import has_prefix_cache
from framework.study.roles import Group
from framework.study.sweep import Study

TOO_SHORT = "above what it served, as in so short a replay waiting does not show (raise trace.num_requests)"
SATURATED = "saturated, served at most {:.3g} req/s (middle 80% of completions)"

MAX_OFF = 0.02  # of an asked rate; arrivals further off are told
MAX_NAMED = 8  # columns in a note

Records = dict[Path, PointRecord]  # by the folder of the point


def service_notes(study: Study, points: pd.DataFrame) -> list[str]:
    """Sentences on the arms of `points`; those of which one is true share it."""
    arms_of: dict[str, list[str]] = {}
    for arm, rows in points.groupby("arm", sort=False):
        folders = [study.folder(point) for point in rows["point"]]
        records = {folder: record for folder in folders if (record := load_record(folder))}
        merged = service_of(study.arms[str(arm)].lora).merged
        for note in (
            *modelled_notes(records.values()),
            *recorded_notes(records.values()),
            *offered_notes(rows, records),
            *left_out_notes(records),
            *ignored_notes(records),
            *(nothing_shared_notes(records) if has_prefix_cache(study.arms[str(arm)]) else ()),
            *unserved_notes(records, merged),
            *memory_notes(records),
            *placement_notes(records),
            *gpu_notes(study, rows),
        ):
            arms_of.setdefault(note, []).append(str(arm))
    notes = [f"{', '.join(arms)}: {note}" for note, arms in arms_of.items()]
    return [
        *notes,
        *idle_swap_notes(group for arm in study.arms.values() for group in arm.groups),
        *short_notes(study, points),
    ]


def offered_notes(points: pd.DataFrame, records: Records) -> Iterator[str]:
    """One sentence if arrivals were more than 2% off a rate that was asked for, as those of thinned traces may be.

    Those of sessions always are: the rate is of their starts. A closed loop has none.
    """
    if "users" in points:
        return
    is_off = (points["offered_rate"] / points["rate"] - 1).abs() > MAX_OFF
    parts = []
    for rate, group in points[points["rate"].isin(points["rate"][is_off])].groupby("rate"):
        low, high = (rate_title(offered) for offered in (group["offered_rate"].min(), group["offered_rate"].max()))
        parts.append(f"{low if low == high else f'{low} to {high}'} where {rate:g} were asked for")
    traces = [record["trace"] for record in records.values()]
    is_of_sessions = any(trace.get("num_sessions", inf) < trace["num_requests"] for trace in traces)
    if parts:
        who = "sessions, whose starts the rates are, make" if is_of_sessions else "the trace offers"
        yield f"{who} {', '.join(parts)}; tables and axes have what was offered"


def left_out_notes(records: Records) -> Iterator[str]:
    """One sentence per reason for which rows of the trace were dropped, or requests refused."""
    traces = [record["trace"] for record in records.values()]
    for verb, points in (
        ("dropped", [trace["dropped"] for trace in traces]),
        ("refused, and count as offered and not met", [trace["refused"] for trace in traces]),
    ):
        for reason in dict.fromkeys(reason for counts in points for reason in counts):
            counts = [each.get(reason, 0) for each in points]
            low, high = min(counts), max(counts)
            number, plural = high if low == high else f"{low} to {high}", high > 1
            yield f"{number} request{'s' * plural} of each point {'were' if plural else 'was'} {verb}: {reason}"


def ignored_notes(records: Records) -> Iterator[str]:
    """What the trace has and the arm makes no use of."""
    ignored = dict.fromkeys(name for record in records.values() for name in record["trace"]["ignored"])
    if ignored:
        prefixes = " (equal ids are equal tokens, computed anew for every request)" if "prefix_ids" in ignored else ""
        more = f" and {len(ignored) - MAX_NAMED} more" if len(ignored) > MAX_NAMED else ""
        yield f"ignores {', '.join(list(ignored)[-MAX_NAMED:])}{more} of the trace{prefixes}"


def nothing_shared_notes(records: Records) -> Iterator[str]:
    """Whether a prefix cache has nothing to find in any of the points."""
    if records and not any(record["trace"].get("may_share", True) for record in records.values()):
        yield (
            "scheduler.prefix_cache finds nothing: the trace has neither text nor closed sessions, and no two requests "
            "with a prefix id in common"
        )


def idle_swap_notes(groups: Iterable[Group]) -> Iterator[str]:
    """Whether blocks on the host are asked for, and none of these servers swaps."""
    most, swaps = 0, False
    for group in groups:
        most = max(most, describe(group.engine).get("num_swap_blocks") or 0)  # null: as recorded
        swaps = swaps or describe(group.scheduler).get("preemption") == "swap"
    if most and not swaps:
        yield f"engine.num_swap_blocks={most} has no effect: no arm has scheduler.preemption=swap"


def short_notes(study: Study, points: pd.DataFrame) -> Iterator[str]:
    """Whether limits on percentiles, as MLPerf has them, are of replays that it would not call valid."""
    num_short = int((points["is_long_enough"] == 0).sum())
    if num_short and len(goals_of(study.slo)) > bool(request_limits(study.slo)):
        long = f"{MLPERF_SECONDS} s and {MLPERF_REQUESTS} requests"
        yield f"{num_short} of {len(points)} replays are shorter than MLPerf's valid ones, of at least {long}"


def unserved_notes(records: Records, merged: str | None) -> Iterator[str]:
    """Whether requests name an adapter and get the base model, or that with the one that is `merged` into it."""
    without_slots = [folder for folder, record in records.items() if not record["engine"]["num_adapter_slots"]]
    if not without_slots:
        return
    columns = ["adapter_id", "refused"]
    tables = [pd.read_parquet(folder / "requests.parquet", columns=columns) for folder in without_slots]
    requests = pd.concat(tables)
    asked = requests.loc[requests["refused"].isna(), "adapter_id"]
    num_unserved = int((asked.notna() & (asked != merged)).sum())
    if num_unserved:
        instead = "the base model" if merged is None else f"the one with {merged!r} merged into it"
        some = f"{num_unserved:,} of {len(asked):,} requests"
        yield f"{some} name an adapter that this arm does not serve; all requests get {instead}"


def memory_notes(records: Records) -> Iterator[str]:
    """How the arm's adapter slots and KV cache share the memory."""
    for engine in [record["engine"] for record in records.values()][:1]:
        if engine["num_adapter_slots"]:
            slots, cache = (engine[name] / 1e6 for name in ("num_adapter_bytes", "num_cache_bytes"))
            if engine.get("blocks_per_adapter"):
                yield (
                    f"up to {engine['num_adapter_slots']} adapters take {engine['blocks_per_adapter']} each of the "
                    f"{engine['num_blocks']:,} KV blocks ({cache:,.1f} MB); {slots:,.1f} MB beside them are kept zero"
                )
            else:
                yield f"adapter slots take {slots:,.1f} MB beside {cache:,.1f} MB of KV cache"


def placement_notes(records: Records) -> Iterator[str]:
    """How far the clocks of servers with a device each are known, and what those cost that died."""
    placed = [placement for record in records.values() if (placement := record.get("placement"))]
    if placed:
        unknown = max(round_trip for placement in placed for round_trip in placement["clock_round_trips"]) / 2
        yield f"each server has a device of its own, in real time; their clocks are known to {1e6 * unknown:.0f} µs"
    lossy = [placement for placement in placed if placement["died"]]
    if lossy:
        num_rerouted = sum(placement["num_rerouted"] for placement in lossy)
        yield (
            f"in {len(lossy)} of {len(placed)} points a server died: {num_rerouted} times a request began anew at "
            "another, and the steps of the dead are not counted"
        )


def limits(study: Study, points: pd.DataFrame) -> list[str]:
    """Per arm, the most it served, and the highest rate here at which enough requests meet the SLOs.

    None of closed loops, whose users wait for their answers: no number of them is too much.
    """
    if "users" in points:
        return []
    slos, target = describe_limits(request_limits(study.slo)), target_of(study.slo)
    within, most = highest_within(points, target), saturation(points)
    rates = over_rates(points)
    without_verdict = set(rates["arm"][is_saturated(rates).isna()])
    lines = []
    for arm in most:
        if arm in without_verdict:
            lines.append(f"{arm}: saturated – (fewer than {MIN_REQUESTS} requests in a replay)")
            continue
        is_known = most[arm] == most[arm]
        if not is_known and arm in study.capacities:  # whose search says of each rate whether it is saturated
            continue
        parts = [SATURATED.format(most[arm]) if is_known else "not saturated at any rate"]
        if slos and arm not in study.capacities and points["rate"].max() < inf:
            rate = f"{short(within[arm])} req/s" if within[arm] == within[arm] else "below every rate here"
            parts.append(f"highest rate here with {100 * target:g}% of requests within {slos}: {rate}")
            if within[arm] > most[arm]:
                parts.append(TOO_SHORT)
        lines.append(f"{arm}: {'; '.join(parts)}")
    return lines
