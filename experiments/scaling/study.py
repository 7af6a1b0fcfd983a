"""Scaling: the capacity of 1, 2, 4, … servers behind every router, beside as many times that of one server."""

from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
from typing_extensions import Unpack

from experiments.scaling.figures import over_servers
from experiments.scaling.tables import scaling_rows, scaling_table
from framework.build import MakeRouter, MakeScheduler
from framework.checks import whole
from framework.config import describe, with_keywords
from framework.measure.capacity import Search
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.study.arguments import Traffic
from framework.study.arms import Arm, parts_of, resolve_arms
from framework.study.sweep import Study, run_search

ONE = "one"  # the arm of one server, which any router makes the same
CAPACITY = (
    "Left: capacity over the number of servers with its 95% interval, a curve per router; dotted: as many times that "
    "of one server. Right: capacity / (servers × capacity of one)."
)
TABLE = "Capacity of every number of servers"
DEFINITIONS = {
    "Efficiency": "capacity of N servers / (N × capacity of one); its interval has that of both capacities, as if they "
    "were independent"
}


class Single(Traffic):
    """What the study takes beside its own keys: all arms are of these parts."""

    quantization: Any
    lora: Any


def run(
    *,
    routers: dict[str, MakeRouter],
    num_servers: list[int],
    scheduler: MakeScheduler,
    clock: Clock,
    search: Search,
    **traffic: Unpack[Single],
) -> None:
    """Search for the capacity of one server, and of each of `num_servers` behind each of `routers`, under the `slo`.

    The trace has its `num_requests` for each server: else many servers would be measured on a short replay.
    """
    parts = parts_of(traffic) | {"scheduler": scheduler, "clock": clock}
    arms = make_arms(parts, routers, num_servers)
    study = run_search(arms, traffic, search)
    finish_sweep(study, "scaling", partial(find, study))
    study.raise_failures()


def make_arms(parts: dict[str, Any], routers: dict[str, MakeRouter], num_servers: list[int]) -> dict[str, Arm]:
    """`one`, and ROUTER-N; ValueError for numbers of servers that are no two or more."""
    if not routers or not num_servers:
        raise ValueError(f"routers={[*routers]} and num_servers={num_servers}: give at least one of each")
    for number in num_servers:
        whole("num_servers", number, at_least=2)
    for key in ("servers", "router", "placement"):
        if key in parts:
            raise ValueError(f"{key} is none of the study's keys: it has one server and num_servers behind its routers")
    if "num_requests" not in describe(parts["trace"]):
        raise ValueError("experiment=scaling needs a trace with num_requests, which it multiplies with the servers")
    several = {
        f"{name}-{number}": {"servers": number, "router": router}
        for name, router in routers.items()
        for number in num_servers
    }
    arms = resolve_arms({ONE: {}, **several}, parts)
    return {name: replace(arm, trace=longer(arm.trace, arm.num_servers)) for name, arm in arms.items()}


def longer(trace: Any, factor: int) -> Any:
    return with_keywords(trace, num_requests=factor * describe(trace)["num_requests"])


def find(study: Study, points: pd.DataFrame) -> Findings:
    rows = scaling_rows(study.capacities, {name: arm.num_servers for name, arm in study.arms.items()}, ONE)
    if rows.empty:
        return Findings(notes=["one server has no capacity here, so nothing can be said of several"])
    figures = {"scaling": (over_servers(rows), CAPACITY)}
    return Findings(figures, {TABLE: scaling_table(rows)}, definitions=DEFINITIONS, files={"scaling.csv": rows})
