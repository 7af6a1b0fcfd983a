"""How many times as long as alone a request takes: its latencies over those of a replay in which none meets another."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from framework.measure.slo import Goal
from framework.study.arguments import Replays
from framework.study.arms import Arm
from framework.study.sweep import Study, run_study

LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E"}
SHARES = (0.5, 0.9, 0.99)  # P50, P90 and P99
OTHERS = ["arrival_time", "scheduled_time", "finish_time", "refused", "think_time"]  # what replications look at
Limits = dict[str, list[float]]  # latency → limits of its P50, P90 and P99, as multiples of what it is alone
Alone = dict[int, pd.DataFrame]  # seed → latencies (s) by `request_id`


def replay_alone(name: str, arm: Arm, sweep: Replays) -> Alone:
    """The requests of every seed one after the other, on one server of the arm's; the points are in a folder beside."""
    folder = Path(sweep["output_dir"]) / "uncontended"
    single = replace(arm, servers=1)
    alone: Any = {**sweep, "users": [1], "output_dir": str(folder), "tracking": None, "capacity": False}
    study = run_study({name: single}, alone)
    study.raise_failures()
    return {
        int(row["seed"]): read_latencies(study, row["point"]).set_index("request_id")
        for row in study.table().to_dict("records")
    }


def read_latencies(study: Study, point: str, others: tuple[str, ...] = ()) -> pd.DataFrame:
    """`request_id` and the latencies (s) of a point's requests, and the columns `others`."""
    columns = ["request_id", *LATENCIES, *others]
    return pd.read_parquet(study.folder(point) / "requests.parquet", columns=columns)


def read_slowdowns(study: Study, alone: Alone, row: dict[str, Any]) -> pd.DataFrame:
    """The requests of a row of the study's points, with `ttft_slowdown`, `tpot_slowdown` and `e2e_slowdown`."""
    requests = read_latencies(study, row["point"], tuple(OTHERS))
    own = alone[row["seed"]].loc[requests["request_id"]].reset_index(drop=True)
    return requests.assign(**{slowdown_of(name): requests[name] / own[name] for name in LATENCIES})


def slowdown_of(latency: str) -> str:
    return f"{latency}_slowdown"


def goals_of_slowdowns(limits: Limits, scale: float) -> tuple[Goal, ...]:
    """One for each limit, of whose excess over 1 `scale` times as much is allowed."""
    goals = []
    for latency, own in limits.items():
        for share, limit in zip(SHARES, own, strict=True):
            allowed = 1 + scale * (limit - 1)
            label = f"{LATENCIES[latency]} P{100 * share:g} ≤ {allowed:g}×"
            goals.append(Goal(label, ((slowdown_of(latency), allowed),), share))
    return tuple(goals)


def check_limits(limits: Limits) -> None:
    """ValueError for a latency that is none, or not a limit above 1 for each percentile."""
    for latency, own in limits.items():
        if latency not in LATENCIES or len(own) != len(SHARES) or not all(limit > 1 for limit in own):
            raise ValueError(
                f"limits.{latency}={own}: give three limits above 1, of P50, P90 and P99, for each of "
                f"{', '.join(LATENCIES)}"
            )
    if not limits:
        raise ValueError(f"limits is empty: give some of {', '.join(LATENCIES)}")


def slowdown_rows(study: Study, alone: Alone, points: pd.DataFrame) -> pd.DataFrame:
    """A row per arm, rate, latency and share: that percentile of the `slowdown`, of all seeds' requests.

    `offered_rate` is their mean (requests/s).
    """
    rows = []
    for (arm, _), group in points.groupby(["arm", "rate"], sort=False):
        every = pd.concat([read_slowdowns(study, alone, row) for row in group.to_dict("records")])
        for latency in LATENCIES:
            for share in SHARES:
                value = float(every[slowdown_of(latency)].quantile(share))
                at = {"arm": arm, "offered_rate": group["offered_rate"].mean()}
                rows.append(at | {"latency": latency, "share": share, "slowdown": value})
    return pd.DataFrame(rows).sort_values(["arm", "offered_rate"], kind="stable", ignore_index=True)
