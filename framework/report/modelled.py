"""What a page says of arms whose steps were not executed: whose times they have, and how far these were measured."""

from collections.abc import Iterable, Iterator
from math import inf

from framework.report.tables import short
from framework.study.arms import Arm
from framework.study.records import PointRecord

MAX_NAMED = 4  # features that are outside of what was fitted


def label(arms: dict[str, Arm]) -> str:
    """Behind a caption: nothing, `(modelled)`, or which of the arms are."""
    modelled = [name for name, arm in arms.items() if arm.is_modelled]
    if not modelled:
        return ""
    return " (modelled)" if len(modelled) == len(arms) else f" (modelled: {', '.join(modelled)})"


def modelled_notes(records: Iterable[PointRecord]) -> Iterator[str]:
    """Of an arm's points: the cost model, and the share of steps that are further than any that it was fitted on."""
    found = [record["engine"]["modelled"] for record in records if "modelled" in record["engine"]]
    if not found:
        return
    first = found[0]
    commit = "" if first["git_commit"] is None else f" at commit {first['git_commit'][:7]}"
    yield f"no step was executed: they take what the cost model {first['name']} says, of {first['device']}{commit}"
    yield from (f"cost model {first['name']}: {note}" for note in first["notes"])
    if any(record["is_older"] for record in found):
        yield f"the source that computes steps has changed since the cost model {first['name']} was measured"
    num_outside, num_steps = (sum(record[name] for record in found) for name in ("num_outside", "num_steps"))
    if num_outside:
        furthest: dict[str, float] = {}
        for record in found:
            for name, factor in record["furthest"].items():
                furthest[name] = max(furthest.get(name, 1.0), inf if factor is None else factor)
        worst = sorted(furthest.items(), key=lambda item: -item[1])[:MAX_NAMED]
        parts = [f"{name} {'none was' if factor == inf else f'{short(factor)} times as far'}" for name, factor in worst]
        yield f"{num_outside:,} of {num_steps:,} steps are outside of what was fitted: {', '.join(parts)}"
