"""What arms can serve within several limits, from one set of replays at several rates with several seeds."""

from collections.abc import Callable, Mapping
from math import isfinite, nan
from typing import Any

import pandas as pd

from framework.measure.capacity import Probe, Replication, estimate
from framework.measure.slo import Goal
from framework.study.capacity import read_requests, replications
from framework.study.sweep import Study

Goals = tuple[Goal, ...]
Read = Callable[[dict[str, Any]], pd.DataFrame]  # a row of points → its requests


def find_capacities(
    study: Study, points: pd.DataFrame, goals: Mapping[float, Goals], read: Read | None = None
) -> pd.DataFrame:
    """A row per arm and limit: `arm`, `limit`, `capacity` (requests/s; NaN: there is none) from `low` to `high`.

    `goals` are what has to hold at each limit; `binds` is the one that fails first, `doubt` why it may be no capacity.
    `read` gives a point's requests with all that the goals are of (None: as they are on disk).
    """
    every = tuple(goal for own in goals.values() for goal in own)
    read = read or (lambda row: read_requests(study.folder(row["point"]), every))
    rows = []
    for arm, own in points.groupby("arm", sort=False):
        probes = probes_of(own, goals, read)
        for limit in goals:
            found = estimate(up_to_saturation(probes[limit]))
            is_found = isfinite(found.rate)
            rows.append(
                {
                    "arm": str(arm),
                    "limit": limit,
                    "capacity": found.rate if is_found else nan,
                    "low": found.low if is_found else nan,
                    "high": found.high if is_found else nan,
                    "binds": found.binds,
                    "doubt": found.problem or "–",
                }
            )
    return pd.DataFrame(rows)


def probes_of(points: pd.DataFrame, goals: Mapping[float, Goals], read: Read) -> dict[float, list[Probe]]:
    """By limit: a probe per rate of one arm's `points`, whose replications are its seeds."""
    by_rate: dict[float, dict[float, list[Replication]]] = {}
    for row in sorted(points.to_dict("records"), key=lambda one: (one["rate"], one["seed"])):
        requests = read(row)
        for limit, own in goals.items():
            found = by_rate.setdefault(limit, {}).setdefault(row["rate"], [])
            found += replications(requests, own, row["seed"], 1, row["rate"])
    return {
        limit: [Probe(rate, tuple(ones), goals[limit]) for rate, ones in of_limit.items()]
        for limit, of_limit in by_rate.items()
    }


def up_to_saturation(probes: list[Probe]) -> list[Probe]:
    """Those up to the lowest rate that is saturated: waiting grows at every higher one, however few replays show it."""
    rates = [probe.asked for probe in probes if probe.is_saturated]
    return [probe for probe in probes if probe.asked <= min(rates, default=probe.asked)]
