"""Arms times workloads, each workload at arrival rates of its own: multiples of what one arm serves at most of it."""

from typing import Any

import pandas as pd
from typing_extensions import TypedDict

from experiments.papers.sustained import base_of
from experiments.papers.workloads import Cases, united
from framework.config import suggest
from framework.study.arguments import Sweep
from framework.study.arms import Arm, Arms, resolve_arms
from framework.study.auto_rates import Multiples
from framework.study.sweep import Study, run_study


class Workload(TypedDict):
    """What a workload changes of every arm's `parts`, and the multiple at which it is compared with the paper."""

    parts: dict[str, dict[str, Any]]
    compared_at: float


def run_workloads(
    workloads: dict[str, Workload], defaults: dict[str, Any], sweep: Sweep
) -> tuple[Study, Cases, Multiples]:
    """All points in one folder as one study, what its arms are made of, and the rates, which are multiples.

    ValueError for rates that are none, and for a workload that is compared at none of them.
    """
    rates, arms = sweep["rates"], sweep["arms"]
    base_of(rates, pd.DataFrame({"rate": [1.0]}))
    assert isinstance(rates, dict)
    check_workloads(workloads, arms, rates)
    variants = {name: under(arms, name, workload, defaults) for name, workload in workloads.items()}
    studies = []
    for name, own in variants.items():
        of_workload: Multiples = {"of": case(rates["of"], name), "multiples": rates["multiples"]}
        of_rates: Sweep = {**sweep, "rates": of_workload}
        studies.append(run_study(own, of_rates))
    return united(studies), {case(arm, name): (arm, name) for name in workloads for arm in arms}, rates


def case(arm: str, workload: str) -> str:
    return f"{arm}-{workload}"


def check_workloads(workloads: dict[str, Workload], arms: Arms, rates: Multiples) -> None:
    if not workloads:
        raise ValueError("workloads is empty: a study needs at least one")
    if rates["of"] not in arms:
        raise ValueError(f"rates.of={rates['of']!r} is no arm{suggest(rates['of'], arms)}")
    for name, workload in workloads.items():
        if workload["compared_at"] not in rates["multiples"]:
            at = workload["compared_at"]
            raise ValueError(f"workloads.{name}.compared_at={at} is none of rates.multiples={rates['multiples']}")


def under(arms: Arms, name: str, workload: Workload, defaults: dict[str, Any]) -> dict[str, Arm]:
    """Every arm with what a workload changes; ValueError for a part that both change."""
    for arm, components in arms.items():
        for part in components.keys() & workload["parts"].keys():
            raise ValueError(f"workloads.{name}.parts and arms.{arm} both change {part}")
    return resolve_arms({case(arm, name): {**own, **workload["parts"]} for arm, own in arms.items()}, defaults)


def with_multiples(rows: pd.DataFrame, rates: Multiples) -> pd.DataFrame:
    """`rows` with the column `multiple`: which of the `rates` the row's `rate` is, among those of its `workload`.

    The highest rate there is that of the highest multiple; a rate of none of them is left out.
    """
    served = rows.groupby("workload", sort=False)["rate"].transform("max") / max(rates["multiples"])
    exact = rows["rate"] / served
    nearest = [min(rates["multiples"], key=lambda multiple: abs(multiple - value)) for value in exact]
    found = rows.assign(multiple=nearest)
    return found[(found["multiple"] / exact - 1).abs() < 0.01]
