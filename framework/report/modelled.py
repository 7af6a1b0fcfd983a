"""What a page says of arms whose steps were not executed: whose times they have, and how far these were measured."""

from collections.abc import Iterable, Iterator
from math import inf

from framework.report.tables import short
from framework.study.arms import Arm
from framework.study.records import ModelledRecord, Number, PointRecord, RecordedRecord

MAX_NAMED = 4  # features that are outside of what was fitted
COUNTS = ("num_steps", "num_replayed", "num_seen", "num_outside")


def label(arms: dict[str, Arm]) -> str:
    """Behind a caption: nothing, `(modelled)`, `(recorded)`, or which of the arms are."""
    named: dict[str, list[str]] = {"modelled": [], "recorded": []}
    for name, arm in arms.items():
        if arm.is_modelled:
            named["recorded" if arm.is_recorded else "modelled"].append(name)
    parts = [
        word if len(names) == len(arms) else f"{word}: {', '.join(names)}" for word, names in named.items() if names
    ]
    return f" ({'; '.join(parts)})" if parts else ""


def modelled_notes(records: Iterable[PointRecord]) -> Iterator[str]:
    """Of an arm's points: the cost model, and the share of steps that are further than any that it was fitted on."""
    found = [record["engine"]["modelled"] for record in records if "modelled" in record["engine"]]
    if not found:
        return
    first = found[0]
    yield f"no step was executed: they take what the cost model {first['name']} says, of {origin(first)}"
    yield from (f"cost model {first['name']}: {note}" for note in first["notes"])
    if first.get("error"):
        yield f"cost model {first['name']}: {describe_error(first['error'])}"
    if any(record["is_older"] for record in found):
        yield f"the source that computes steps has changed since the cost model {first['name']} was measured"
    num_outside, num_steps = (sum(record[name] for record in found) for name in ("num_outside", "num_steps"))
    if num_outside:
        furthest = furthest_of(record["furthest"] for record in found)
        yield f"{num_outside:,} of {num_steps:,} steps are outside of what was fitted: {furthest}"


def describe_error(error: dict[str, Number]) -> str:
    """How far a cost model is from steps that it was not fitted on (framework.cost.error), beside its goals."""
    bias, median, p99, coverage = (float(error[name] or 0.0) for name in ("bias", "median", "p99", "coverage"))
    return (
        f"on {error['num_steps']:,.0f} steps that were not fitted it is off by {bias:+.1%} of all seconds (goal 0.3%), "
        f"{median:.1%} of a step's at the median (goal 1%), {p99:,.0%} at the 99th percentile (goal 5%); "
        f"{coverage:.0%} are within its 90% interval"
    )


def recorded_notes(records: Iterable[PointRecord]) -> Iterator[str]:
    """Of an arm's points: the record, and which shares of their steps it has in it."""
    found = [record["engine"]["recorded"] for record in records if "recorded" in record["engine"]]
    if not found:
        return
    first = found[0]
    yield f"no step was executed: they take what was recorded in {first['name']}, on {origin(first)}"
    if any(record["is_older"] for record in found):
        yield f"the source that a replay runs through has changed since {first['name']} was recorded"
    num_steps, num_replayed, num_seen, num_outside = (sum(record[name] for record in found) for name in COUNTS)  # type: ignore[literal-required]
    counts = {
        "replayed": num_replayed,
        "as steps that were seen": num_seen,
        "interpolated": num_steps - num_replayed - num_seen - num_outside,
        "outside of what was recorded": num_outside,
    }
    shares = [f"{count / num_steps:.1%} {what}" for what, count in counts.items() if count]
    furthest = furthest_of(record["furthest"] for record in found)
    yield f"of {num_steps:,} steps {', '.join(shares)}" + (f" ({furthest})" if furthest else "")
    num_unknown = sum(not record["has_outputs"] for record in found)
    if num_unknown:
        yield (
            f"{num_unknown} of {len(found)} points have requests that were not recorded: their tokens are all equal, "
            "and no output ends before the length that the trace gives it"
        )


def origin(record: ModelledRecord | RecordedRecord) -> str:
    """Of its steps: the device and, where it is known, the commit."""
    commit = record["git_commit"]
    return record["device"] if commit is None else f"{record['device']} at commit {commit[:7]}"


def furthest_of(distances: Iterable[dict[str, Number]]) -> str:
    """By which features steps are the furthest outside, and how far."""
    furthest: dict[str, float] = {}
    for distance in distances:
        for name, factor in distance.items():
            furthest[name] = max(furthest.get(name, 1.0), inf if factor is None else factor)
    worst = sorted(furthest.items(), key=lambda item: -item[1])[:MAX_NAMED]
    parts = [f"{name} {'none was' if factor == inf else f'{short(factor)} times as far'}" for name, factor in worst]
    return ", ".join(parts)
